"""One generation: draws the schedule, runs it on members, survives the loss of replicas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from cluster.blending.adaptive import AdaptiveMixture
from cluster.blending.base import Combined, Learner, Run, Together
from cluster.blending.losing import without
from cluster.blending.routing import Cascade, Routed
from cluster.errors import MemberGone, ReplicaLost
from cluster.members.base import Doubt, Draw, Form, Member, Rank, RunEnd, Step, StepEvent
from cluster.members.seat import Seat
from cluster.router.plan import Plan
from cluster.router.requests import (
    FinishReason,
    Law,
    MemberUsage,
    Notice,
    NoticeKind,
    Outcome,
    Update,
)
from cluster.router.seats import Seats
from cluster.router.together import combined_next, drawn_token, told
from cluster.router.transcript import Transcript

_FINISHES = {
    RunEnd.END_OF_TURN: FinishReason.END_OF_TURN,
    RunEnd.CONTEXT_FULL: FinishReason.CONTEXT_FULL,
}


class Generation:
    """A reply under way. `updates` is its whole life; leaving it early frees everything."""

    def __init__(self, plan: Plan, members: Mapping[str, Member], lease_timeout_s: float) -> None:
        self._plan = plan
        self._transcript = Transcript(plan.members, plan.form, plan.stop)
        self._seats = Seats(plan, members, lease_timeout_s)
        self._finish: FinishReason | None = None
        self._dropped = False  # the last run ended at a border, its next token dropped there
        self._law = Law.EXACT
        self._dropped_share = 0.0
        self._notices: list[Notice] = []

    @property
    def usage(self) -> tuple[MemberUsage, ...]:
        """What it has cost each member used, once its seats are given back."""
        for usage, drawn in zip(self._seats.usage, self._transcript.drawn, strict=True):
            usage.drawn_tokens = drawn
        return tuple(usage for usage in self._seats.usage if usage.leases)

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Take turns until the reply has ended; commit and pass on."""
        transcript = self._transcript
        is_seated = False
        try:
            while self._finish is None:
                try:
                    if not is_seated:
                        await self._sit_down()
                        is_seated = True
                    async with aclosing(self._turn()) as turn:
                        async for update in turn:
                            yield update
                except MemberGone as gone:
                    await self._seats.leave()  # the others may have been stopped in mid-step
                    yield Update(notices=(self._go_on_without(gone),))
                    continue
                if transcript.stop_string:
                    self._finish = FinishReason.STOP_STRING
                if self._finish is None and transcript.position >= self._plan.max_tokens:
                    self._finish = FinishReason.MAX_TOKENS
            last = transcript.finish()
            if transcript.stop_string:
                self._finish = FinishReason.STOP_STRING
        finally:
            await self._seats.leave()
        last.outcome = self._outcome(self._finish)
        yield last

    def _go_on_without(self, gone: MemberGone) -> Notice:
        """Renormalise the weights of the others, if the blend wants that and somebody is left."""
        if self._plan.blend.spec.on_member_loss != "renormalise":
            raise gone
        left = without(self._plan.method, self._plan.members.index(gone.member))
        if left is None:
            raise gone
        self._plan = replace(self._plan, method=left)
        self._dropped = False
        notice = Notice(
            NoticeKind.MEMBER_GONE, gone.member, self._transcript.position, gone.message
        )
        self._notices.append(notice)
        return notice

    async def _turn(self) -> AsyncGenerator[Update, None]:
        """A token by all, or a run by one.

        A run is fixed when it is planned. If its replica is lost, another one of the same member
        is given the transcript and draws the rest of the run: the same tokens, because every
        uniform is fixed by its position.
        """
        method, position = self._plan.method, self._transcript.position
        if isinstance(method, Together):
            yield await self._draw_together(method)
            return
        if isinstance(method, Routed) and not method.is_decided(position):
            await self._ask_gate(method)
            if self._finish is not None:
                return
        remaining = self._plan.max_tokens - position
        run = method.next_run(position, remaining, dropped=self._dropped)
        weights: tuple[tuple[str, float], ...] = ()
        if isinstance(method, AdaptiveMixture | Routed):
            weights = tuple(self._weights().items())  # before the run tells more
        async with aclosing(self._speak(run, weights)) as speech:
            async for update in speech:
                yield update

    async def _ask_gate(self, gate: Routed) -> None:
        """Let it read what its reader makes of all that was said."""
        position = self._transcript.position
        rank = Rank(position, num_top=1, with_state=True)
        *_, answer = await told(gate.reader, rank, self._seats, self._transcript)
        if answer.end is RunEnd.CONTEXT_FULL:
            self._finish = FinishReason.CONTEXT_FULL
            return
        gate.decide(position, answer.state)

    async def _draw_together(self, method: Together) -> Update:
        combined = await combined_next(method, self._seats, self._transcript)
        if combined is None:
            self._finish = FinishReason.CONTEXT_FULL
            return Update()
        self._note_law(combined)
        plan, position = self._plan, self._transcript.position
        token, at = drawn_token(combined, plan, position)
        if token.id in plan.tokens.end_ids and position >= plan.end_allowed_from:
            self._finish = FinishReason.END_OF_TURN
            return Update()
        if isinstance(method.rule, Learner):
            method.rule.learn(combined.told, token.id)
        shares = dict(zip(method.speakers, combined.shares[:, at].tolist(), strict=True))
        named = tuple((plan.members[index], share) for index, share in shares.items())
        leading = max(shares, key=lambda index: shares[index])
        return self._transcript.commit(leading, [token], named, combined.bound)

    async def _speak(
        self, run: Run, weights: tuple[tuple[str, float], ...]
    ) -> AsyncGenerator[Update, None]:
        """One run, drawn by these weights where they change, on as many replicas as it takes."""
        begin = self._transcript.length
        while not self._is_done(run):
            try:
                seat = await self._seats.take(run.member)
                known = seat.known
                async with aclosing(seat.run(self._step(run, begin, seat))) as events:
                    async for event in events:
                        self._listen(run.member, known, event)
                        if event.tokens:
                            yield self._transcript.commit(run.member, event.tokens, weights=weights)
                            seat.known = self._transcript.length
                            self._seats.progress(run.member)
                        if self._transcript.stop_string:
                            return
                        if event.end is not None:
                            self._end_run(event.end)
                return
            except ReplicaLost as error:
                await self._seats.lose(run.member, error)

    def _listen(self, member: int, known: int, event: StepEvent) -> None:
        """Note what the speaker thinks of what others said, and it itself."""
        evidence = self._plan.evidence
        if evidence is None:
            return
        if event.news_logprobs:
            evidence.note(member, known, event.news_logprobs)
        if event.tokens:
            logprobs = [token.logprob for token in event.tokens]
            evidence.note(member, self._transcript.position, logprobs)

    def _is_done(self, run: Run) -> bool:
        """Whether a replica lost after the run's last token left nothing more to draw."""
        num_done = self._transcript.position - run.position
        return num_done >= run.max_tokens and not self._transcript.is_torn

    def _step(self, run: Run, begin: int, seat: Seat) -> Step:
        """What the run still needs, as news to what the seat knows."""
        transcript, position = self._transcript, self._transcript.position
        evidence = self._plan.evidence
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
            score_news=evidence is not None and evidence.follows_reply,
            doubt=self._doubt(run, num_done),
        )
        if self._plan.form is Form.TOKEN_IDS:
            return Step(seat.known, draw, token_ids=transcript.ids(seat.known))
        # Text up to the run's beginning, then the run's own ids: only then does a fresh replica
        # compute with the very tokens that the lost one had drawn.
        base = min(seat.known, begin)
        return Step(base, draw, transcript.bytes(base, begin), transcript.ids(run.position))

    def _doubt(self, run: Run, num_done: int) -> Doubt | None:
        """Where the run's member hands over, if it may."""
        method = self._plan.method
        if not isinstance(method, Cascade) or run.member != method.first:
            return None
        return Doubt(method.measure, method.threshold, method.span_tokens, num_done)

    def _end_run(self, end: RunEnd) -> None:
        self._dropped = end in (RunEnd.BORDER, RunEnd.DOUBT)
        if end is RunEnd.DOUBT:
            assert isinstance(self._plan.method, Cascade), "only these may doubt"
            self._plan.method.doubt(self._transcript.position)
        self._finish = _FINISHES.get(end)

    async def _sit_down(self) -> None:
        method, evidence = self._plan.method, self._plan.evidence
        if evidence is not None and evidence.reads_prompt:
            evidence.read_prompt(await self._seats.read_prompt(method.speakers))
            if isinstance(method, AdaptiveMixture) and not evidence.follows_reply:
                await self._seats.leave(keep=method.now().speakers)  # no other is needed again
            return
        if isinstance(method, Together):
            first = method.speakers
        elif isinstance(method, Routed):
            first = (method.reader,)
            if method.mixture.span == "response":  # who else sits is not known before
                await self._seats.sit_down(first, first)
                await self._ask_gate(method)
                speakers = method.drawn()
                if speakers != first:
                    await self._seats.leave()
                    await self._seats.sit_down(speakers, speakers)
                return
        else:
            first = (method.next_run(0, self._plan.max_tokens, dropped=False).member,)
        await self._seats.sit_down(method.speakers, first)

    def _outcome(self, finish: FinishReason | None) -> Outcome:
        assert finish is not None, "a reply ends for a reason"
        return Outcome(
            finish_reason=finish,
            stop_string=self._transcript.stop_string,
            seed=self._plan.seed,
            blend=self._plan.blend.name,
            revision=self._plan.blend.revision,
            num_tokens=self._transcript.position,
            weights=self._weights(),
            law=self._law,
            dropped_share=self._dropped_share,
            usage=self.usage,
            notices=tuple(self._notices),
        )

    def _note_law(self, combined: Combined) -> None:
        """How exactly the reply so far has the law of its rule."""
        self._dropped_share = sum(law.dropped for law in combined.told)
        if self._dropped_share > 0:
            self._law = Law.APPROXIMATE
        elif combined.bound > 0:
            self._law = Law.BOUNDED

    def _weights(self) -> dict[str, float]:
        """The members' weights now, where they follow the transcript."""
        method, names, evidence = self._plan.method, self._plan.members, self._plan.evidence
        if self._plan.decided:
            return dict(self._plan.decided)
        if isinstance(method, Routed):
            return dict(zip(names, method.weights(), strict=True))
        if evidence is None:
            return {}
        if isinstance(method, Together):
            names = tuple(names[index] for index in method.speakers)
        return dict(zip(names, evidence.weights(), strict=True))
