"""How far one member's run goes: by length, by border, by share, by the end of the turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.engine.types import Verdict
from cluster.members.base import Draw, RunEnd
from cluster.members.judge import RunJudge
from cluster.randomness import Purpose, uniform
from cluster.text.borders import Border

KEEP, LAST, DROP = Verdict.KEEP, Verdict.KEEP_AND_STOP, Verdict.DROP_AND_STOP
SEED = 11
END = b"<end>"
MINE, NOT_MINE = (0.0, 1.0), (0.0, 0.0)  # shares that win every draw, and none


def judged(
    pieces: Sequence[bytes], before: bytes = b"", **draw: Any
) -> tuple[list[Verdict], RunEnd | None]:
    """The verdicts on these tokens, one after another, until the run is over; and why it is."""
    wanted = Draw(**{"position": 0, "max_tokens": 100} | draw)
    judge = RunJudge(wanted, seed=SEED, token_bytes=pieces, end_ids=ends(pieces), before=before)
    verdicts = []
    for token in range(len(pieces)):
        verdicts.append(judge(token))
        if verdicts[-1] is not KEEP:
            break
    return verdicts, judge.end


def ends(pieces: Sequence[bytes]) -> set[int]:
    return {token for token, piece in enumerate(pieces) if piece == END}


def test_a_run_is_complete_at_its_length() -> None:
    assert judged([b"a"] * 5, max_tokens=3) == ([KEEP, KEEP, LAST], RunEnd.COMPLETE)
    assert judged([b"a"] * 2, max_tokens=3) == ([KEEP, KEEP], None)


def test_without_a_border_words_and_sentences_do_not_matter() -> None:
    pieces = [b"One.", b" Two", b"\n", b"Three"]
    assert judged(pieces, b"Zero", max_tokens=4, share=NOT_MINE)[1] is RunEnd.COMPLETE


def test_the_end_of_the_turn_ends_the_run_and_is_dropped() -> None:
    assert judged([b"a", END]) == ([KEEP, DROP], RunEnd.END_OF_TURN)


def test_the_end_of_the_turn_has_no_text_even_if_its_token_spells_some() -> None:
    judge = RunJudge(
        Draw(0, 9, Border.WORD), seed=SEED, token_bytes=[b"x", b" end"], end_ids=[1], before=b"a"
    )
    assert [judge(0), judge(1)] == [KEEP, DROP]
    assert judge.end is RunEnd.END_OF_TURN


def test_a_word_that_belongs_to_another_is_dropped_where_it_begins() -> None:
    verdicts, end = judged(
        [b" The", b" ", b"q", b"uick", b"!", b" fox"], border=Border.WORD, share=NOT_MINE
    )
    assert (verdicts, end) == ([KEEP, DROP], RunEnd.BORDER)
    verdicts, end = judged([b"The", b"re", b"'s", b" fox"], border=Border.WORD, share=NOT_MINE)
    assert (verdicts, end) == ([KEEP, KEEP, KEEP, DROP], RunEnd.BORDER)


def test_a_sentence_goes_on_over_its_words() -> None:
    pieces = [b"Dr", b" Who", b" came", b".", b'"', b" He"]
    verdicts, end = judged(pieces, border=Border.SENTENCE, share=NOT_MINE)
    assert (verdicts, end) == ([KEEP] * 5 + [DROP], RunEnd.BORDER)


def test_a_border_that_the_draw_gives_to_the_member_itself_is_passed() -> None:
    verdicts, end = judged([b" a", b" b", b" c"], border=Border.WORD, share=MINE)
    assert (verdicts, end) == ([KEEP] * 3, None)


def test_each_border_is_decided_by_the_draw_of_its_own_position() -> None:
    first = 40
    draws = [uniform(SEED, Purpose.SPEAKER, first + n) for n in range(12)]
    share = (0.0, sorted(draws[1:])[6])
    lost = next(n for n in range(1, 12) if not share[0] <= draws[n] < share[1])
    verdicts, end = judged([b" w"] * 12, border=Border.WORD, share=share, position=first)
    assert (verdicts, end) == ([KEEP] * lost + [DROP], RunEnd.BORDER)


def test_a_share_has_its_lower_end_and_not_its_upper_one() -> None:
    draw = uniform(SEED, Purpose.SPEAKER, 1)
    assert judged([b" a", b" b"], border=Border.WORD, share=(draw, 1.0))[1] is None
    assert judged([b" a", b" b"], border=Border.WORD, share=(0.0, draw))[1] is RunEnd.BORDER


def test_the_first_token_of_a_span_passes_its_own_border() -> None:
    given: dict[str, Any] = {"before": b"Once", "border": Border.WORD, "share": NOT_MINE}
    assert judged([b" upon", b" a"], begins_span=True, **given)[0] == [KEEP, DROP]


def test_a_run_taken_up_again_meets_the_border_before_its_first_token() -> None:
    given: dict[str, Any] = {"before": b"Once", "border": Border.WORD, "share": NOT_MINE}
    assert judged([b" upon", b" a"], begins_span=False, **given) == ([DROP], RunEnd.BORDER)
    assert judged([b"r", b" a"], begins_span=False, **given)[0] == [KEEP, DROP]


def test_the_end_of_the_turn_is_a_border_too() -> None:
    given: dict[str, Any] = {"border": Border.WORD, "before": b"Once"}
    assert judged([b" a", END], share=NOT_MINE, **given) == ([KEEP, DROP], RunEnd.BORDER)
    assert judged([b" a", END], share=MINE, **given) == ([KEEP, DROP], RunEnd.END_OF_TURN)
    assert judged([END], share=NOT_MINE, **given) == ([DROP], RunEnd.END_OF_TURN)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_border_is_seen_across_characters_cut_by_tokens(cut: int) -> None:
    space, char = "\u3000".encode(), "中".encode()
    verdicts, end = judged(
        [b"a", space[:cut], space[cut:], char], border=Border.WORD, share=NOT_MINE
    )
    assert (verdicts, end) == ([KEEP] * 4, None)  # inside the white space nothing begins
    begun = judged([char[:cut], char[cut:]], char, border=Border.WORD, share=NOT_MINE)
    assert begun == ([KEEP, KEEP], None)
    pieces = [char[:cut], char[cut:], char[:cut], char[cut:]]
    verdicts, end = judged(pieces, border=Border.WORD, share=NOT_MINE)
    assert (verdicts, end) == ([KEEP, KEEP, DROP], RunEnd.BORDER)


def test_whole_characters_go_on_past_the_length() -> None:
    char = [bytes([byte]) for byte in "é中😀".encode()]
    for length, num_kept in [(1, 2), (2, 2), (3, 5), (4, 5), (6, 9), (9, 9)]:
        verdicts, end = judged([*char, b"x"], max_tokens=length, whole_characters=True)
        assert (len(verdicts), verdicts[-1], end) == (num_kept, LAST, RunEnd.COMPLETE)
        assert len(judged(char, max_tokens=length)[0]) == length


def test_a_character_begun_before_the_run_is_completed_by_it() -> None:
    begun, rest = "中".encode()[:1], [bytes([byte]) for byte in "中".encode()[1:]]
    verdicts, _ = judged([*rest, b"x"], b"a" + begun, max_tokens=1, whole_characters=True)
    assert verdicts == [KEEP, LAST]
    given: dict[str, Any] = {"border": Border.WORD, "share": NOT_MINE, "begins_span": False}
    assert judged([*rest, b" x"], b"a " + begun, **given)[0] == [KEEP, KEEP, DROP]


def test_a_character_that_is_never_completed_is_given_up() -> None:
    verdicts, end = judged([b"\xe4"] * 100, max_tokens=2, whole_characters=True)
    assert (len(verdicts), verdicts[-1], end) == (10, LAST, RunEnd.COMPLETE)


def test_tokens_without_text_count_and_begin_nothing() -> None:
    pieces = [b"a", b"", b"", b"b"]
    verdicts, end = judged(pieces, b"x", border=Border.WORD, share=NOT_MINE, max_tokens=4)
    assert (verdicts, end) == ([KEEP, KEEP, KEEP, LAST], RunEnd.COMPLETE)


def test_a_border_depends_on_the_end_of_a_long_text_alone() -> None:
    long = ("é" * 5000 + ". ").encode()
    for before in (long, long[-319:]):  # the second is cut inside a character
        given: dict[str, Any] = {"border": Border.SENTENCE, "share": NOT_MINE, "begins_span": False}
        assert judged([b"A", b"."], before, **given)[1] is None
        assert judged([b" A"], before.rstrip(), **given)[1] is RunEnd.BORDER
