"""Under load a message to a client holds several tokens, and nothing of the reply is changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from cluster.errors import ReplicaLost
from cluster.members.base import StepToken
from cluster.router import pacing
from cluster.router.answers import ReplyToken, Start, Update
from cluster.router.pacing import interval_s, paced


def token(number: int) -> Update:
    return Update(f"{number} ", [ReplyToken("austen", number, StepToken(number, b"", 0.0))])


async def drawn(num: int, every_s: float, *, fails: bool = False) -> AsyncIterator[Update]:
    yield Update(start=Start(seed=1, blend="b", revision="r"))
    for number in range(num):
        yield token(number)
        await asyncio.sleep(every_s)
    if fails:
        raise ReplicaLost("REPLICA_LOST", "gone")


def test_few_streams_wait_for_nothing_and_many_at_most_a_quarter_of_a_second() -> None:
    assert [interval_s(num) for num in (1, 8, 12)] == [0, 0, 0]
    assert interval_s(64) == pytest.approx(64 * 0.0002 / 0.25)
    assert interval_s(100_000) == 0.25


@pytest.mark.parametrize("num_streams", [1, 64])
async def test_the_reply_is_the_same_in_fewer_messages(num_streams: int) -> None:
    source = drawn(100, 0.001)
    async with aclosing(paced(source, lambda: num_streams)) as pieces:
        told = [piece async for piece in pieces]
    assert "".join(piece.text for piece in told) == "".join(f"{i} " for i in range(100))
    assert [it.token.id for piece in told for it in piece.tokens] == list(range(100))
    assert told[0].start is not None
    if num_streams == 1:
        assert len(told) == 100  # the start travels with the first
    else:  # 100 tokens take 0.1 s at least, an interval is 0.05 s
        assert len(told) < 50
        first = next(piece for piece in told if piece.tokens)
        assert len(first.tokens) == 1  # which nothing holds back


class EarlyLoop(asyncio.SelectorEventLoop):
    """Its timers come before their time by its own clock, as those of uvloop may, by far."""

    def time(self) -> float:
        return 0.0

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return super().call_at(0.0, callback, *args, context=context)


def test_nothing_is_lost_when_timers_come_early() -> None:
    async def drawn_in_bursts(pauses: int) -> AsyncIterator[Update]:
        for number in range(30):
            yield token(number)
            for _ in range(pauses * number % 4):
                await asyncio.sleep(0)

    async def read(pauses: int) -> list[int]:
        async with aclosing(paced(drawn_in_bursts(pauses), lambda: 64)) as pieces:
            return [it.token.id async for piece in pieces for it in piece.tokens]

    with asyncio.Runner(loop_factory=EarlyLoop) as runner:
        for pauses in range(1, 9):
            assert runner.run(read(pauses)) == list(range(30))


async def test_what_was_drawn_before_a_failure_is_told_before_it() -> None:
    told = []

    async def read() -> None:
        async with aclosing(paced(drawn(5, 0, fails=True), lambda: 64)) as pieces:
            async for piece in pieces:
                told.extend(it.token.id for it in piece.tokens)

    with pytest.raises(ReplicaLost):
        await read()
    assert told == [0, 1, 2, 3, 4]


async def test_who_leaves_ends_the_reply_at_once() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[Update]:
        try:
            for number in range(10**9):
                yield token(number)
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async with aclosing(paced(endless(), lambda: 64)) as pieces:
        await anext(pieces)
    assert ended.is_set()


async def test_a_reader_that_does_not_read_holds_the_reply_up() -> None:
    num_drawn = 0

    async def eager() -> AsyncIterator[Update]:
        nonlocal num_drawn
        for number in range(10_000):
            num_drawn += 1
            yield token(number)

    async with aclosing(paced(eager(), lambda: 1)) as pieces:
        await anext(pieces)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert num_drawn <= 2 * pacing._MAX_AHEAD + 1
        rest = [it.token.id async for piece in pieces for it in piece.tokens]
    assert rest[-1] == 9_999
