"""One replica: what it computes depends on what it is told alone, at the cost of what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.engine.fake import next_token
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest
from cluster.members.base import Draw, Form, RunEnd, ScoreText, Step
from cluster.members.seat import Seat
from cluster.text.borders import Border
from tests.members.factories import (
    Said,
    chatter,
    make_replica,
    member_text,
    run,
    seated,
    start_of,
    stopping,
    told,
)


class Talk:
    """The transcript of one sequence, spoken by turns with another member."""

    def __init__(self, seat: Seat, form: Form) -> None:
        self.said: list[Said] = []
        self._seat = seat
        self._form = form
        self._length = 0  # of what the replica knows

    async def draw(self, num: int, others: Any = ()) -> Said:
        """Tell what others said, text or ids, and draw."""
        want = Draw(0, num)
        if self._form is Form.TEXT:
            others = others or b""
            step = Step(self._length, want, text=others)
        else:
            step = Step(self._length, want, token_ids=tuple(others))
        said = await run(self._seat, step)
        self.said.append(said)
        mine: Any = said.bytes if self._form is Form.TEXT else said.ids
        self._length += len(others) + len(mine)
        return said


@pytest.mark.parametrize("name", ["gpt2", "llama2", "bytes", "unigram", "superwords"])
async def test_a_fresh_replica_told_the_whole_text_goes_on_the_same(name: str) -> None:
    start = start_of(form=Form.TEXT)
    with stopping(old := make_replica(name), new := make_replica(name)):
        async with seated(old, start) as seat:
            talk = Talk(seat, Form.TEXT)
            text = (await talk.draw(5)).bytes
            for others in (b"", b"ick brown", " foxé 中".encode(), b"s"):
                last = await talk.draw(6, others)
                text += others
                assert (await told(new, start, Step(0, Draw(0, 6), text))).ids == last.ids
                # and when the run was lost half way
                rest = Step(0, Draw(2, 4), text, last.ids[:2])
                assert (await told(new, start, rest)).ids == last.ids[2:]
                text += last.bytes


async def test_a_replica_that_took_over_in_mid_run_goes_on_like_any_other() -> None:
    start = start_of()
    with stopping(replica := make_replica("gpt2")):
        whole = await told(replica, start, Step(0, Draw(0, 6), b"The fox"))
        after = b"The fox" + whole.bytes
        expected = await told(replica, start, Step(0, Draw(6, 5), after + b" and then"))
        async with seated(replica, start) as seat:
            await run(seat, Step(0, Draw(4, 2), b"The fox", whole.ids[:4]))
            said = await run(seat, Step(len(after), Draw(6, 5), b" and then"))
            assert said.ids == expected.ids


@pytest.mark.parametrize("form", [Form.TOKEN_IDS, Form.TEXT])
async def test_a_border_after_what_a_lost_replica_drew_is_seen(form: Form) -> None:
    drawn, following = (member_text("gpt2").canonical.encode(word) for word in (" the", " dog"))
    with stopping(replica := make_replica("gpt2", lambda ids: following[0])):
        want = Draw(len(drawn), 9, Border.WORD, share=(0.0, 0.0), begins_span=False)
        said = await told(replica, start_of(form=form), Step(0, want, token_ids=tuple(drawn)))
        assert (said.tokens, said.end) == ([], RunEnd.BORDER)


async def test_a_fresh_replica_told_all_ids_goes_on_the_same() -> None:
    start = start_of(form=Form.TOKEN_IDS)
    with stopping(old := make_replica("gpt2"), new := make_replica("gpt2")):
        async with seated(old, start) as seat:
            talk = Talk(seat, Form.TOKEN_IDS)
            ids = (await talk.draw(5)).ids
            for others in ((), (40, 41, 42), (99,)):
                last = await talk.draw(4, others)
                ids += others
                for num_known in (0, 2):
                    rest = Step(0, Draw(0, 4 - num_known), token_ids=ids + last.ids[:num_known])
                    assert (await told(new, start, rest)).ids == last.ids[num_known:]
                ids += last.ids


async def test_what_a_member_said_itself_is_not_processed_again() -> None:
    with stopping(replica := make_replica("bytes")):
        async with seated(replica, start_of()) as seat:
            talk = Talk(seat, Form.TEXT)
            await talk.draw(10)
            before = seat.usage.processed_tokens
            await talk.draw(1, b"xyz")
            assert seat.usage.processed_tokens - before == 1 + 3  # its own last token was not fed


async def test_a_word_gone_on_with_by_another_is_tokenized_anew_and_nothing_before_it() -> None:
    text = member_text("gpt2")
    begun, whole = text.canonical.encode(" the qui"), text.canonical.encode(" the quick")
    assert begun[:1] == whole[:1]
    assert len(begun) > len(whole) == 2
    script = iter([*begun, 0, 0])
    with stopping(replica := make_replica("gpt2", lambda ids: next(script))):
        async with seated(replica, start_of()) as seat:
            talk = Talk(seat, Form.TEXT)
            assert (await talk.draw(len(begun))).bytes == b" the qui"
            before = seat.usage.processed_tokens
            await talk.draw(1, b"ck")
            assert seat.usage.processed_tokens - before == 1  # " quick" instead of " qu" and "i"


async def test_a_step_may_take_back_what_was_said() -> None:
    start = start_of()
    with stopping(replica := make_replica("gpt2")):
        async with seated(replica, start) as seat:
            first = await run(seat, Step(0, Draw(0, 8)))
            keep = len(first.tokens[0].bytes) + 1
            again = await run(seat, Step(keep, Draw(1, 3), b" and then"))
        text = first.bytes[:keep] + b" and then"
        assert (await told(replica, start, Step(0, Draw(1, 3), text))).ids == again.ids


async def test_a_draw_depends_on_seed_position_and_whether_it_is_a_retake_alone() -> None:
    hot: dict[str, Any] = {"sampling": SamplingParams(temperature=1), "seed": 5}
    with stopping(replica := make_replica("gpt2")):

        async def draw(position: int, num: int = 1, told_ids: Sequence[int] = (), **d: Any) -> Any:
            step = Step(0, Draw(position, num, **d), token_ids=tuple(told_ids))
            return (await told(replica, start_of(form=Form.TOKEN_IDS, **hot), step)).ids

        whole = await draw(3, 8)
        assert len(set(whole)) > 4
        assert await draw(7, 4, whole[:4]) == whole[4:]
        assert await draw(9, 4, whole[:4]) != whole[4:]
        retaken = await draw(3, 8, retake=True)
        assert retaken[0] != whole[0]
        assert await draw(4, 7, retaken[:1]) == retaken[1:]
        hot["seed"] = 6
        assert await draw(3, 8) != whole


async def test_many_sequences_at_once_say_what_each_says_alone() -> None:
    prompts = [f"number {n} said" for n in range(12)]
    with stopping(replica := make_replica("gpt2")):
        step = Step(0, Draw(0, 20), b" that")
        alone = [(await told(replica, start_of(p), step)).ids for p in prompts]
        together = await asyncio.gather(*(told(replica, start_of(p), step) for p in prompts))
        assert [said.ids for said in together] == alone
        assert len(set(alone)) == len(prompts)


async def test_candidates_are_reported_with_their_bytes() -> None:
    text = member_text("gpt2")
    with stopping(replica := make_replica("gpt2")):
        said = await told(replica, start_of(num_top=3), Step(0, Draw(0, 2)))
    for token in said.tokens:
        assert len(token.top) == 3
        assert token.top[0].id == token.id
        assert [text.token_bytes[c.id] for c in token.top] == [c.bytes for c in token.top]


async def test_the_turn_is_not_ended_before_it_may_be() -> None:
    text = member_text("gpt2")
    end = text.end_ids[0]
    speak = chatter(text)

    def likeliest(ids: Sequence[int]) -> int:
        return end if next_token(ids, 2) else speak(ids)

    with stopping(replica := make_replica("gpt2", likeliest)):
        said = await told(replica, start_of(), Step(0, Draw(0, 100)))
        assert (said.end, end in said.ids) == (RunEnd.END_OF_TURN, False)
        longer = await told(replica, start_of(end_allowed_from=30), Step(0, Draw(0, 100)))
        assert longer.end is RunEnd.END_OF_TURN
        assert len(longer.tokens) >= 30 > len(said.tokens)
        assert end not in longer.ids


async def test_a_run_ends_where_the_context_does() -> None:
    with stopping(replica := make_replica("bytes", max_context=40)):
        said = await told(replica, start_of(), Step(0, Draw(0, 100_000)))
        assert (len(said.tokens), said.end) == (24, RunEnd.CONTEXT_FULL)


async def test_a_continuation_that_does_not_fit_is_refused_by_its_field() -> None:
    with stopping(replica := make_replica("bytes", max_context=40)):
        for text, reason in [("x" * 40, "CONTINUATION_TOO_LONG"), ("", "EMPTY_CONTINUATION")]:
            async with seated(replica, start_of()) as seat:
                with pytest.raises(InvalidRequest, match="between 1 and 24 fit") as caught:
                    await run(seat, Step(0, ScoreText(text)))
            assert (caught.value.reason, caught.value.field) == (reason, "continuation")
        async with seated(replica, start_of()) as seat:
            scored = await run(seat, Step(0, ScoreText("x" * 24)))
            assert (scored.bytes, scored.end) == (b"x" * 24, RunEnd.COMPLETE)
