"""The same to several members at once: open a sequence on each, and carry out one step on all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from cluster.members.base import Member, MemberInfo, SequenceStart, Step, StepToken
from cluster.members.seat import Seat


@dataclass(slots=True)
class Answer:
    """What one member told of a prompt, and of the step after it."""

    info: MemberInfo
    num_prompt_tokens: int
    prompt_digest: int
    tokens: list[StepToken] = field(default_factory=list)
    news_logprobs: list[float] = field(default_factory=list)


async def on_each(
    members: Mapping[str, Member], start: SequenceStart, want: Step | None, lease_timeout_s: float
) -> dict[str, Answer]:
    """By member: what it answered.

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


async def _open_and_run(seat: Seat, start: SequenceStart, want: Step | None) -> Answer:
    await seat.open(start)
    answer = Answer(seat.info, seat.usage.prompt_tokens, seat.prompt_digest)
    if want is not None:
        async with aclosing(seat.run(want)) as events:
            async for event in events:
                answer.tokens += event.tokens
                answer.news_logprobs += event.news_logprobs
    return answer
