"""What the caller may see, and when: stop strings, torn characters, attribution."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.members.base import Form, StepToken
from cluster.router.answers import Update
from cluster.router.transcript import Transcript

HARD = "Ünï 漢字 👩‍👩‍👧 e\u0301 \r\n\t  ab"


def spoken(
    pieces: list[bytes], stop: tuple[str, ...] = (), form: Form = Form.TOKEN_IDS
) -> tuple[Transcript, list[Update]]:
    """Two members in turn say the pieces, one token each, until a stop string."""
    transcript = Transcript(("a", "b"), form, stop)
    updates = []
    for i, piece in enumerate(pieces):
        updates.append(transcript.commit(i % 2, [StepToken(i, piece, -1.0)]))
        if transcript.stop_string:
            break
    return transcript, [*updates, transcript.finish()]


def text_of(updates: list[Update]) -> str:
    return "".join(update.text for update in updates)


def bytes_of(updates: list[Update]) -> bytes:
    return b"".join(token.token.bytes for update in updates for token in update.tokens)


@st.composite
def pieces_of(draw: st.DrawFn) -> list[bytes]:
    data = draw(st.text(alphabet=HARD, max_size=30)).encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(pieces_of())
def test_every_update_is_whole_characters_and_together_they_are_the_text(
    pieces: list[bytes],
) -> None:
    _, updates = spoken(pieces)
    assert text_of(updates) == b"".join(pieces).decode()
    assert "\ufffd" not in text_of(updates)
    assert bytes_of(updates) == b"".join(pieces)


@given(pieces_of(), st.lists(st.text(alphabet=HARD, min_size=1, max_size=3), min_size=1))
def test_the_text_ends_before_the_first_stop_string_wherever_it_is_cut(
    pieces: list[bytes], stop: list[str]
) -> None:
    transcript, updates = spoken(pieces, tuple(stop))
    whole = b"".join(pieces).decode()
    found = [string for string in stop if string in whole]
    if not found:
        assert text_of(updates) == whole
        assert transcript.stop_string == ""
        return
    first_end = min(whole.index(string) + len(string) for string in found)
    assert transcript.stop_string in found
    assert text_of(updates) + transcript.stop_string == whole[:first_end]
    assert bytes_of(updates).decode() == text_of(updates)


def test_text_that_may_begin_a_stop_string_is_held_and_then_released() -> None:
    transcript = Transcript(("a",), Form.TOKEN_IDS, ("STOP",))
    assert transcript.commit(0, [StepToken(1, b"xS", -1.0)]).text == "x"
    assert transcript.commit(0, [StepToken(2, b"TO", -1.0)]).text == ""
    update = transcript.commit(0, [StepToken(3, b"y", -1.0)])
    assert update.text == "STOy"
    assert [token.token.id for token in update.tokens] == [1, 2, 3]


def test_a_character_cut_short_at_the_end_is_replaced_once() -> None:
    _, updates = spoken([b"a", "é".encode()[:1]])
    assert text_of(updates) == "a\ufffd"


def test_length_counts_tokens_or_bytes_as_members_exchange_them() -> None:
    pieces = ["é".encode(), b"x"]
    assert spoken(pieces, form=Form.TOKEN_IDS)[0].length == 2
    assert spoken(pieces, form=Form.TEXT)[0].length == 3


def test_members_that_exchange_text_wait_for_whole_characters() -> None:
    for form, is_torn in ((Form.TEXT, True), (Form.TOKEN_IDS, False)):
        transcript = Transcript(("a",), form, ())
        transcript.commit(0, [StepToken(1, "é".encode()[:1], -1.0)])
        assert transcript.is_torn == is_torn
        transcript.commit(0, [StepToken(2, "é".encode()[1:], -1.0)])
        assert not transcript.is_torn
