"""The router's hold on one sequence of one replica."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
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
        self._news: deque[Event] = deque()
        self._has_news = asyncio.Event()
        self._is_running = False  # a step, whose end was not taken yet
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

    def begin(self, step: Step) -> None:
        """Have a step carried out, of which `heard` tells."""
        assert self._channel is not None, "begun before open"
        self._sent_s = time.monotonic()
        self._is_running = True
        self._channel.step(step)
        self.usage.steps += 1

    async def heard(self) -> StepEvent:
        """The next event of the step with anything to tell; the last one has an end."""
        while True:
            event = await self._next()
            assert isinstance(event, StepEvent), "a sequence opens once"
            self._is_running = event.end is None
            if event.tokens or event.distribution or event.end is not None:
                return event

    async def answer(self, step: Step) -> list[StepEvent]:
        """All that a step tells."""
        self.begin(step)
        events = [await self.heard()]
        while events[-1].end is None:
            events.append(await self.heard())
        return events

    async def close(self) -> None:
        """Forget the sequence, even in mid-step, and give the replica back; never fails."""
        if self._channel is not None:
            if self._is_running:
                self._channel.cancel()
            self._channel.close()
        while self._news:
            self._count(self._news.popleft())
        await self._lease.release()

    def _hear(self, event: Event) -> None:
        """Tokens that come before the last ones were taken join them: who is late catches up."""
        if isinstance(event, StepEvent) and event.end is not None:
            self.step_s = time.monotonic() - self._sent_s
        if not (self._news and _joins(self._news[-1], event)):
            self._news.append(event)
            self._has_news.set()

    async def _next(self) -> Event:
        while not self._news:
            self._has_news.clear()
            await self._has_news.wait()
        event = self._news.popleft()
        self._count(event)
        if isinstance(event, Failed):
            raise event.error
        return event

    def _count(self, event: Event) -> None:
        if isinstance(event, StepEvent):
            self.usage.forward_passes += event.num_passes
            self.usage.processed_tokens += event.num_processed
            self.usage.cached_tokens += event.num_cached


def _joins(last: Event, event: Event) -> bool:
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
