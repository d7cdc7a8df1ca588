"""The same to several members at once: open a sequence on each, and carry out one step on all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from cluster.members.base import Member, SequenceStart, Step, StepToken
from cluster.members.seat import Seat


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
        results = await asyncio.gather(*(_open_and_run(s, start, want) for s in seats.values()))
        return dict(zip(seats, results, strict=True))
    finally:
        await asyncio.gather(*(seat.close() for seat in seats.values()))


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
