"""What goes wrong with one sequence, or ends it, touches no other and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.engine.base import Chunk
from cluster.errors import InternalError, InvalidRequest, ReplicaLost
from cluster.members.base import (
    Draw,
    Event,
    Failed,
    Form,
    Opened,
    Prompt,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
)
from cluster.members.replica import Replica
from cluster.text.chat import Message
from tests.members.factories import (
    load_of,
    make_replica,
    member_text,
    run,
    seated,
    slowly,
    start_of,
    stopping,
    told,
)

ENDLESS = 100_000


async def freed(replica: Replica) -> None:
    """Wait until nothing is held; the test's time limit is the only clock."""
    while replica.num_sequences or load_of(replica).num_sequences:
        await asyncio.sleep(0.005)
    while load_of(replica).num_free_pages < load_of(replica).num_pages:
        await asyncio.sleep(0.005)


class Listener:
    """All that a sequence reports, and a step that is over when it says so."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    async def until(self, is_it: Any) -> Any:
        while not (found := [event for event in self.events if is_it(event)]):
            self.news.clear()
            await self.news.wait()
        return found[0]


def ends(event: Event) -> bool:
    return isinstance(event, Failed) or (isinstance(event, StepEvent) and event.end is not None)


async def test_a_gap_in_the_transcript_fails_the_sequence() -> None:
    with stopping(replica := make_replica("gpt2")):
        for form in Form:
            async with seated(replica, start_of(form=form)) as seat:
                with pytest.raises(InternalError, match="keeps 3"):
                    await run(seat, Step(3, Draw(0, 1)))


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt(text="word " * 40), "prompt"),
        (Prompt(messages=(Message("user", "word " * 40),)), "chat"),
    ],
)
async def test_a_prompt_that_is_too_long_is_refused_by_its_field(
    prompt: Prompt, field: str
) -> None:
    fixed = start_of()
    start = SequenceStart(prompt, Form.TEXT, fixed.sampling, fixed.seed, max_prompt_tokens=60)
    with stopping(replica := make_replica("bytes")):
        with pytest.raises(InvalidRequest, match="at most 60 fit") as caught:
            async with seated(replica, start):
                pass
        assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", field)
        await freed(replica)


async def test_an_engine_that_fails_a_pass_fails_its_sequences_and_no_others() -> None:
    poison = next(iter(member_text("bytes").canonical.encode("#")))

    def before_pass(chunks: Sequence[Chunk]) -> None:
        if any(poison in chunk.ids for chunk in chunks):
            raise RuntimeError("the device is unhappy")

    with stopping(replica := make_replica("bytes", before_pass=before_pass)):
        expected = await told(replica, start_of(), Step(0, Draw(0, 20)))
        async with seated(replica, start_of()) as healthy:
            assert await run(healthy, Step(0, Draw(0, 5)))
            async with seated(replica, start_of("a # in it", prefill=False)) as ill:
                with pytest.raises(InternalError, match="the device is unhappy") as caught:
                    await run(ill, Step(0, Draw(0, 1)))
                assert caught.value.reason == "ENGINE_FAILED"
            rest = await run(healthy, Step(len(expected.bytes[:5]), Draw(5, 15)))
            assert rest.ids == expected.ids[5:]
        await freed(replica)


async def test_a_step_that_cannot_be_applied_fails_its_sequence_alone() -> None:
    with stopping(replica := make_replica("bytes")):
        async with seated(replica, start_of()) as seat:
            with pytest.raises(InvalidRequest, match="expected ids below"):
                await run(seat, Step(0, Draw(0, 1), token_ids=(10**6,)))
        assert (await told(replica, start_of(), Step(0, Draw(0, 3)))).end is RunEnd.COMPLETE


@pytest.mark.parametrize("prefill", [True, False])
async def test_a_prompt_of_tokens_that_the_model_lacks_fails_its_sequence_alone(
    prefill: bool,
) -> None:
    num_rows = max(member_text("bytes").canonical.encode("\x80"))
    with stopping(replica := make_replica("bytes", vocab_size=num_rows)):
        with pytest.raises(InvalidRequest, match="token ids must be"):
            await told(replica, start_of("\x80", prefill=prefill), Step(0, Draw(0, 1)))
        assert (await told(replica, start_of(), Step(0, Draw(0, 3)))).end is RunEnd.COMPLETE


async def test_closing_in_the_middle_of_a_step_frees_every_page() -> None:
    with stopping(replica := make_replica("bytes", before_pass=slowly)):
        async with seated(replica, start_of()) as seat:
            seat.begin(Step(0, Draw(0, ENDLESS)))
            await seat.heard()
            assert load_of(replica).num_free_pages < load_of(replica).num_pages
        await freed(replica)


async def test_closing_before_the_prompt_is_rendered_leaves_nothing() -> None:
    events: list[Event] = []
    with stopping(replica := make_replica("bytes")):
        replica.open(start_of(), events.append).close()
        await freed(replica)
        await told(replica, start_of(), Step(0, Draw(0, 3)))
        assert events == []


async def test_a_step_asked_for_before_the_prompt_is_ready_waits_for_it() -> None:
    listener = Listener()
    with stopping(replica := make_replica("gpt2")):
        expected = await told(replica, start_of(), Step(0, Draw(0, 3)))
        sequence = replica.open(start_of(), listener)
        sequence.step(Step(0, Draw(0, 3)))
        assert (await listener.until(ends)).end is RunEnd.COMPLETE
        assert isinstance(listener.events[0], Opened)
        tokens = [t for e in listener.events if isinstance(e, StepEvent) for t in e.tokens]
        assert tuple(token.id for token in tokens) == expected.ids
        sequence.close()


async def test_a_sequence_lost_with_its_lease_says_so_if_it_owes_an_answer() -> None:
    lost = ReplicaLost("LEASE_NOT_LIVE", "the lease is not live")
    with stopping(replica := make_replica("gpt2", before_pass=slowly)):
        for does_owe in (True, False):
            listener = Listener()
            sequence = replica.open(start_of(), listener)
            sequence.step(Step(0, Draw(0, ENDLESS if does_owe else 1)))
            await listener.until(lambda e: isinstance(e, StepEvent) and e.tokens)
            sequence.lose(lost)
            failures = [e.error for e in listener.events if isinstance(e, Failed)]
            assert failures == ([lost] if does_owe else [])
            await freed(replica)


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_cancelling_ends_a_step_whether_it_waits_or_runs(is_waiting: bool) -> None:
    listener = Listener()
    with stopping(replica := make_replica("gpt2", before_pass=slowly)):
        sequence = replica.open(start_of(), listener)
        sequence.step(Step(0, Draw(0, ENDLESS)))
        if not is_waiting:
            await listener.until(lambda e: isinstance(e, StepEvent) and e.tokens)
        sequence.cancel()
        assert (await listener.until(ends)).end is RunEnd.CANCELLED
        sequence.close()
        await freed(replica)
