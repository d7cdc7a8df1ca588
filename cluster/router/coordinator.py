"""One generation: draws the schedule, runs it on members, survives the loss of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from cluster.blending.base import Run
from cluster.errors import ReplicaLost, Unavailable
from cluster.members.base import Draw, Form, Member, RunEnd, Step
from cluster.members.seat import Seat
from cluster.router.plan import Plan
from cluster.router.requests import FinishReason, MemberUsage, Outcome, Update
from cluster.router.transcript import Transcript

MAX_LOSSES_WITHOUT_PROGRESS = 3  # a prompt that kills every replica it meets is not carried further

_FINISHES = {
    RunEnd.END_OF_TURN: FinishReason.END_OF_TURN,
    RunEnd.CONTEXT_FULL: FinishReason.CONTEXT_FULL,
}


class Generation:
    """A reply under way. `updates` is its whole life; leaving it early frees everything."""

    def __init__(self, plan: Plan, members: Mapping[str, Member], lease_timeout_s: float) -> None:
        self._plan = plan
        self._members = members
        self._lease_timeout_s = lease_timeout_s
        self._transcript = Transcript(plan.members, plan.form, plan.stop)
        self._usage = [MemberUsage(name) for name in plan.members]
        self._seats: dict[int, Seat] = {}
        self._finish: FinishReason | None = None
        self._dropped = False  # the last run ended at a border, its next token dropped there

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Plan a run, let its member speak, commit and pass on; until the reply has ended.

        A run is fixed when it is planned. If its replica is lost, another one of the same member
        is given the transcript and draws the rest of the run: the same tokens, because every
        uniform is fixed by its position.
        """
        plan, transcript = self._plan, self._transcript
        try:
            await self._sit_down()
            while self._finish is None:
                remaining = plan.max_tokens - transcript.position
                run = plan.method.next_run(transcript.position, remaining, dropped=self._dropped)
                async with aclosing(self._speak(run)) as speech:
                    async for update in speech:
                        yield update
                if self._finish is None and transcript.position >= plan.max_tokens:
                    self._finish = FinishReason.MAX_TOKENS
            last = transcript.finish()
            if transcript.stop_string:
                self._finish = FinishReason.STOP_STRING
        finally:
            await self._leave()
        last.outcome = self._outcome(self._finish)
        yield last

    async def _speak(self, run: Run) -> AsyncGenerator[Update, None]:
        """One run, on as many replicas as it takes."""
        begin = self._transcript.length
        losses = 0
        while not self._is_done(run):
            position = self._transcript.position
            try:
                seat = self._seats.get(run.member) or await self._take_seat(run.member)
                async with aclosing(seat.run(self._step(run, begin, seat))) as events:
                    async for event in events:
                        if event.tokens:
                            yield self._transcript.commit(run.member, event.tokens)
                            seat.known = self._transcript.length
                        if self._transcript.stop_string:
                            self._finish = FinishReason.STOP_STRING
                            return
                        if event.end is not None:
                            self._end_run(event.end)
                return
            except ReplicaLost as error:
                await self._lose_seat(run.member)
                losses = 0 if self._transcript.position > position else losses
                losses += 1
                if losses > MAX_LOSSES_WITHOUT_PROGRESS:
                    raise Unavailable(
                        "MEMBER_UNAVAILABLE",
                        f"member {self._plan.members[run.member]!r} lost {losses} replicas in a "
                        f"row on this request; the last: {error.message}",
                    ) from error

    def _is_done(self, run: Run) -> bool:
        """Whether a replica lost after the run's last token left nothing more to draw."""
        num_done = self._transcript.position - run.position
        return num_done >= run.max_tokens and not self._transcript.is_torn

    def _step(self, run: Run, begin: int, seat: Seat) -> Step:
        """What the run still needs, as news to what the seat knows."""
        transcript, position = self._transcript, self._transcript.position
        num_done = position - run.position
        max_tokens = max(1, run.max_tokens - num_done)
        draw = Draw(
            position=position,
            max_tokens=max_tokens,
            border=run.border,
            share=run.share,
            begins_span=num_done == 0,
            retake=run.retake and num_done == 0,
            whole_characters=self._plan.form is Form.TEXT
            and position + max_tokens < self._plan.max_tokens,
        )
        if self._plan.form is Form.TOKEN_IDS:
            return Step(seat.known, draw, token_ids=transcript.ids(seat.known))
        # Text up to the run's beginning, then the run's own ids: only then does a fresh replica
        # compute with the very tokens that the lost one had drawn.
        base = min(seat.known, begin)
        return Step(base, draw, transcript.bytes(base, begin), transcript.ids(run.position))

    def _end_run(self, end: RunEnd) -> None:
        self._dropped = end is RunEnd.BORDER
        self._finish = _FINISHES.get(end)

    async def _sit_down(self) -> None:
        """Lease every member that may speak, in one fixed order, then open them all at once.

        The order is by name for all blends, so that two generations never wait for each other.
        """
        speakers = sorted(self._plan.method.speakers, key=lambda index: self._plan.members[index])
        for index in speakers:
            await self._lease(index)
        first = self._plan.method.next_run(0, self._plan.max_tokens, dropped=False).member
        opened = await asyncio.gather(
            *(self._open(index, prefill=index != first) for index in speakers),
            return_exceptions=True,
        )
        for index, error in zip(speakers, opened, strict=True):
            if isinstance(error, ReplicaLost):
                await self._lose_seat(index)
            elif isinstance(error, BaseException):
                raise error

    async def _take_seat(self, index: int) -> Seat:
        """A fresh replica for a member whose last one was lost."""
        seat = await self._lease(index)
        await self._open(index, prefill=False)
        return seat

    async def _lease(self, index: int) -> Seat:
        member = self._members[self._plan.members[index]]
        seat = Seat(await member.lease(self._lease_timeout_s))
        self._seats[index] = seat
        self._usage[index].leases += 1
        return seat

    async def _open(self, index: int, *, prefill: bool) -> None:
        seat = self._seats[index]
        await seat.open(self._plan.start(seat.info, prefill=prefill))

    async def _lose_seat(self, index: int) -> None:
        if seat := self._seats.pop(index, None):
            await self._close(index, seat)

    async def _leave(self) -> None:
        seats, self._seats = self._seats, {}
        await asyncio.gather(*(self._close(index, seat) for index, seat in seats.items()))

    async def _close(self, index: int, seat: Seat) -> None:
        await seat.close()
        self._usage[index].seat += seat.usage

    def _outcome(self, finish: FinishReason | None) -> Outcome:
        assert finish is not None, "a reply ends for a reason"
        for usage, drawn in zip(self._usage, self._transcript.drawn, strict=True):
            usage.drawn_tokens = drawn
        return Outcome(
            finish_reason=finish,
            stop_string=self._transcript.stop_string,
            seed=self._plan.seed,
            blend=self._plan.blend.name,
            revision=self._plan.blend.revision,
            num_tokens=self._transcript.position,
            usage=tuple(usage for usage in self._usage if usage.leases),
        )
