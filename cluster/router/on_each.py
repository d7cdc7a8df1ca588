"""The same to several members at once: open a sequence on each, and carry out one step on all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from cluster.members.base import Member, SequenceStart, Step, StepToken
from cluster.members.seat import Seat

T = TypeVar("T")


async def on_each(
    members: Mapping[str, Member], start: SequenceStart, want: Step | None, lease_timeout_s: float
) -> dict[str, tuple[int, list[StepToken]]]:
    """By member: how many tokens the prompt has, and the step's tokens.

    Members are leased by name, the one fixed order, so that two requests never wait for each other.
    """
    seats: dict[str, Seat] = {}
    try:
        for name in sorted(members):
            seats[name] = Seat(await members[name].lease(lease_timeout_s))
        results = await all_of([_open_and_run(seat, start, want) for seat in seats.values()])
        return dict(zip(seats, results, strict=True))
    finally:
        await asyncio.gather(*(seat.close() for seat in seats.values()))


async def all_of(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; when one fails, the others are cancelled before its error goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open_and_run(
    seat: Seat, start: SequenceStart, want: Step | None
) -> tuple[int, list[StepToken]]:
    await seat.open(start)
    tokens: list[StepToken] = []
    if want is not None:
        async with aclosing(seat.run(want)) as events:
            async for event in events:
                tokens.extend(event.tokens)
    return seat.usage.prompt_tokens, tokens
