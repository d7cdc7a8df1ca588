"""The same to several members at once: open a sequence on each, and carry out one step on all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cluster.members.base import Member, MemberInfo, SequenceStart, Step, StepToken
from cluster.members.seat import Seat

T = TypeVar("T")


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
    """By member: what it answered. Each is held for its own answer only."""

    async def one(member: Member) -> Answer:
        seat = Seat(await member.lease(lease_timeout_s))
        try:
            return await _open_and_run(seat, start, want)
        finally:
            await asyncio.shield(seat.close())

    answers = await all_of(one(member) for member in members.values())
    return dict(zip(members, answers, strict=True))


async def all_of(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; when one fails, the others are cancelled before its error goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _open_and_run(seat: Seat, start: SequenceStart, want: Step | None) -> Answer:
    await seat.open(start)
    answer = Answer(seat.info, seat.usage.prompt_tokens, seat.prompt_digest)
    if want is not None:
        for event in await seat.answer(want):
            answer.tokens += event.tokens
            answer.news_logprobs += event.news_logprobs
    return answer
