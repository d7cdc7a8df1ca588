"""What a seat makes of news that comes faster than it is taken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cluster.errors import ReplicaLost
from cluster.members.base import (
    Draw,
    Emit,
    Failed,
    Form,
    MemberInfo,
    Opened,
    RunEnd,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    Tokens,
)
from cluster.members.seat import Seat
from tests.members.factories import start_of

INFO = MemberInfo("here", "none", "same", 100, False)


@dataclass
class HandFed:
    """A lease, its transport and its channel: says what the test has it say."""

    emit: Emit = print
    info: MemberInfo = INFO

    @property
    def transport(self) -> HandFed:
        return self

    def open(self, start: SequenceStart, emit: Emit) -> HandFed:
        self.emit = emit
        emit(Opened(prompt_tokens=3))
        return self

    async def tokens(self) -> Tokens:
        return Tokens([], frozenset())

    def step(self, step: Step) -> None:
        pass

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def release(self) -> None:
        pass


def token(id: int) -> StepToken:
    return StepToken(id, b"a", -1.0)


def drew(*ids: int, end: RunEnd | None = None) -> StepEvent:
    return StepEvent([token(id) for id in ids], end, num_passes=1, num_processed=len(ids))


STEP = Step(0, Draw(position=0, max_tokens=4))


async def test_tokens_that_wait_come_as_one_event() -> None:
    fed = HandFed()
    seat = Seat(fed)
    await seat.open(start_of(form=Form.TOKEN_IDS))
    for event in (drew(1), drew(2), drew(3), drew(4, end=RunEnd.COMPLETE)):
        fed.emit(event)
    (event,) = await seat.answer(STEP)
    assert [token.id for token in event.tokens] == [1, 2, 3, 4]
    assert event.end is RunEnd.COMPLETE
    assert (seat.usage.forward_passes, seat.usage.processed_tokens) == (4, 4)


async def test_what_is_told_beside_tokens_keeps_its_place() -> None:
    fed = HandFed()
    seat = Seat(fed)
    await seat.open(start_of(form=Form.TOKEN_IDS))
    with_news = StepEvent([token(3)], news_logprobs=(-2.0,))
    for event in (drew(1), drew(2), with_news, drew(4, end=RunEnd.COMPLETE)):
        fed.emit(event)
    events = await seat.answer(STEP)
    assert [[token.id for token in event.tokens] for event in events] == [[1, 2], [3, 4]]
    assert events[1].news_logprobs == (-2.0,)


async def test_tokens_that_came_before_a_loss_are_not_lost() -> None:
    fed = HandFed()
    seat = Seat(fed)
    await seat.open(start_of(form=Form.TOKEN_IDS))
    for event in (drew(1), drew(2), Failed(ReplicaLost("REPLICA_LOST", "gone"))):
        fed.emit(event)
    seat.begin(STEP)
    assert [token.id for token in (await seat.heard()).tokens] == [1, 2]
    with pytest.raises(ReplicaLost):
        await seat.heard()
