"""The router's hold on one sequence of one replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from cluster.members.base import (
    Channel,
    Event,
    Failed,
    Lease,
    MemberInfo,
    Opened,
    SequenceStart,
    Step,
    StepEvent,
)


@dataclass(slots=True)
class SeatUsage:
    """What a sequence cost its replica so far."""

    prompt_tokens: int = 0
    processed_tokens: int = 0
    cached_tokens: int = 0
    forward_passes: int = 0
    steps: int = 0

    def __iadd__(self, other: SeatUsage) -> SeatUsage:
        """Add another seat's cost; the prompt counts once, however often it was replayed."""
        self.prompt_tokens = max(self.prompt_tokens, other.prompt_tokens)
        self.processed_tokens += other.processed_tokens
        self.cached_tokens += other.cached_tokens
        self.forward_passes += other.forward_passes
        self.steps += other.steps
        return self


class Seat:
    """Opens a sequence on a leased replica, runs its steps one after another, and adds up the cost.

    Every method raises the error that the replica or the way to it reports; after `ReplicaLost`
    the seat is of no more use, and another one given the whole transcript takes its place.
    """

    def __init__(self, lease: Lease) -> None:
        self.usage = SeatUsage()
        self.prompt_digest = 0  # of a prompt that is scored
        self.step_s = 0.0  # from the last step's sending until its end was heard
        self.known = 0  # how much of the reply the replica has: tokens, or bytes for Form.TEXT
        self._lease = lease
        self._news: asyncio.Queue[Event] = asyncio.Queue()
        self._last: Event | None = None  # that came
        self._sent_s = 0.0
        self._channel: Channel | None = None

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self._lease.info

    async def open(self, start: SequenceStart) -> None:
        """Begin the sequence; returns when the prompt is accepted, before it is processed."""
        self._channel = self._lease.transport.open(start, self._hear)
        while not isinstance(event := await self._next(), Opened):
            pass
        self.usage.prompt_tokens = event.prompt_tokens
        self.prompt_digest = event.prompt_digest

    async def prompt_logprobs(self) -> Sequence[float]:
        """Of a prompt that is scored at once: all its tokens' but the first; once, at first."""
        event = await self._next()
        assert isinstance(event, StepEvent), "a sequence opens once"
        return event.news_logprobs

    async def run(self, step: Step) -> AsyncGenerator[StepEvent, None]:
        """Carry out a step; yields its events as they come, the last one with an end.

        Leaving the iteration early cancels the step; the seat can then only be closed.
        """
        assert self._channel is not None, "run before open"
        self._sent_s = time.monotonic()
        self._channel.step(step)
        self.usage.steps += 1
        is_over = False
        try:
            while not is_over:
                event = await self._next()
                assert isinstance(event, StepEvent), "a sequence opens once"
                is_over = event.end is not None
                if event.tokens or event.distribution or is_over:
                    yield event
        finally:
            if not is_over:
                self._channel.cancel()

    async def close(self) -> None:
        """Forget the sequence and give the replica back; never fails."""
        if self._channel is not None:
            self._channel.close()
        while not self._news.empty():
            self._count(self._news.get_nowait())
        await self._lease.release()

    def _hear(self, event: Event) -> None:
        """Tokens that come before the last ones were taken join them: who is late catches up."""
        if isinstance(event, StepEvent) and event.end is not None:
            self.step_s = time.monotonic() - self._sent_s
        if not self._news.empty() and _joins(self._last, event):
            return
        self._last = event
        self._news.put_nowait(event)

    async def _next(self) -> Event:
        event = await self._news.get()
        self._count(event)
        if isinstance(event, Failed):
            raise event.error
        return event

    def _count(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            self.usage.forward_passes += event.num_passes
            self.usage.processed_tokens += event.num_processed
            self.usage.cached_tokens += event.num_cached


def _joins(last: Event | None, event: Event) -> bool:
    """Add drawn tokens to those of the event before, if both have nothing else to tell."""
    if not (isinstance(last, StepEvent) and isinstance(event, StepEvent)):
        return False
    if not last.tokens or last.end is not None or event.distribution or event.news_logprobs:
        return False
    last.tokens += event.tokens
    last.end = event.end
    last.num_passes += event.num_passes
    last.num_processed += event.num_processed
    last.num_cached += event.num_cached
    return True
