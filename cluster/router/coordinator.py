"""One generation: draws the schedule, runs it on members, survives the loss of replicas."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from cluster.blending.adaptive import AdaptiveMixture
from cluster.blending.base import Learner, Method, Run, Together
from cluster.blending.combined import Mean, Product
from cluster.blending.losing import without
from cluster.blending.routing import Cascade, Routed
from cluster.errors import MemberGone, ReplicaLost
from cluster.members.base import Form, Member, RunEnd, StepEvent
from cluster.router.answers import FinishReason, Law, MemberUsage, Outcome, Update
from cluster.router.notices import Notice, NoticeKind
from cluster.router.plan import Plan
from cluster.router.resuming import (
    Recall,
    Views,
    minding_format,
    recall_together,
    views_of,
    without_lost,
)
from cluster.router.seating import ask_gate, sit_down
from cluster.router.seats import Seats
from cluster.router.speculating import TOGETHER, Block, Speculator
from cluster.router.steps import Speech, step_for
from cluster.router.together import LawSoFar, combined_next, drawn_together
from cluster.router.transcript import Transcript

_FINISHES = {
    RunEnd.END_OF_TURN: FinishReason.END_OF_TURN,
    RunEnd.CONTEXT_FULL: FinishReason.CONTEXT_FULL,
}


class Generation:
    """A reply under way. `updates` is its whole life; leaving it early frees everything."""

    def __init__(
        self,
        plan: Plan,
        members: Mapping[str, Member],
        lease_timeout_s: float,
        ticks_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._transcript = Transcript(plan.members, plan.form, plan.stop)
        self._seats = Seats(plan, members, lease_timeout_s)
        self._ticks_s = ticks_s
        self._speculator: Speculator | None = None  # where somebody may draft
        if plan.speculation is not None:
            drafting = plan.blend.drafting
            self._speculator = Speculator(drafting, self._seats, self._transcript, ticks_s)
        self._finish: FinishReason | None = None
        self._is_behind = bool(plan.received)  # of what the caller has
        self._losses = deque(plan.losses)
        self._speech: Speech | None = None  # a run that broke off elsewhere, to go on with
        self._dropped = False  # the last run ended at a border, its next token dropped there
        self._law = LawSoFar()
        self._notices = list(plan.losses)

    @property
    def usage(self) -> tuple[MemberUsage, ...]:
        """What it has cost each member used, once its seats are given back."""
        for usage, drawn in zip(self._seats.usage, self._transcript.drawn, strict=True):
            usage.drawn_tokens = drawn
        return tuple(usage for usage in self._seats.usage if usage.leases)

    @property
    def backlog(self) -> int:
        """Tokens of the reply that its members have yet to read, all together."""
        transcript = self._transcript
        num_behind = self._seats.num_behind(transcript.length)  # in bytes, where text is exchanged
        return round(num_behind * transcript.position / max(1, transcript.length))

    async def updates(self) -> AsyncGenerator[Update, None]:
        """Take turns until the reply has ended; commit and pass on."""
        transcript = self._transcript
        last, is_seated = Update(), False
        try:
            if self._is_behind and not self._needs_views:
                self._recall({})
            with minding_format(self._plan):
                while self._finish is None:
                    try:
                        if not is_seated:
                            await sit_down(self._plan, self._seats, self._transcript)
                            is_seated = True
                            await self._stand()
                            self._end_if_due()
                            continue
                        async with aclosing(await self._turn()) as turn:
                            async for update in turn:
                                if transcript.stop_string:
                                    last = update  # shown with the outcome: nobody can ask for more
                                else:
                                    yield update
                    except MemberGone as gone:
                        await self._seats.leave()  # the others may have been stopped in mid-step
                        yield Update(notices=(self._go_on_without(gone),))
                    self._end_if_due()
            rest = transcript.finish()
            self._end_if_due()
        finally:
            await self._seats.leave()
        tokens = [*last.tokens, *rest.tokens]
        yield Update(last.text + rest.text, tokens, self._outcome(self._finish))

    def _end_if_due(self) -> None:
        if self._transcript.stop_string:
            self._finish = FinishReason.STOP_STRING
        if self._finish is None and self._transcript.position >= self._plan.max_tokens:
            self._finish = FinishReason.MAX_TOKENS

    @property
    def _needs_views(self) -> bool:
        """Whether what members think of prompt or reply decides where a received reply stands."""
        rule = self._plan.method.rule if isinstance(self._plan.method, Together) else None
        return self._plan.evidence is not None and not isinstance(rule, Learner)

    async def _stand(self) -> None:
        """What only members can tell of where a received reply stands."""
        plan, method = self._plan, self._plan.method
        if self._is_behind:
            follows = plan.evidence is not None and plan.evidence.follows_reply
            known = self._recall(await views_of(plan, self._seats) if follows else {})
            if follows:  # who was not to know all yet hears the rest again in its turn
                self._seats.forget(known)
        elif plan.received and plan.form is Form.BYTES and isinstance(method, Together):
            now = await combined_next(method, self._seats, self._transcript)
            if now is not None:
                self._law.note(now)

    def _recall(self, views: Views) -> Mapping[int, int]:
        """Stand where what the caller has ends; members hear of it as news.

        Gives how much of it each member had heard.
        """
        plan, transcript, method = self._plan, self._transcript, self._plan.method
        self._is_behind = False
        if not isinstance(method, Together):
            recall = Recall(plan, transcript, views, self._losses)
            recall.take_turns()
            self._plan = recall.plan
            self._dropped = recall.dropped
            self._speech = None if recall.is_over else recall.speech
            return recall.known
        if not isinstance(method.rule, Learner):  # else members tell again of each token
            for received in plan.received:
                recall_together(plan, transcript, received)
            if isinstance(method.rule, Mean | Product) and method.rule.num_candidates:
                self._law.law = Law.BOUNDED
        return {}

    def _go_on_without(self, gone: MemberGone) -> Notice:
        """Renormalise the weights of the others, if the blend wants that and somebody is left."""
        if self._plan.blend.spec.on_member_loss != "renormalise":
            raise gone
        left = without(self._plan.method, self._plan.members.index(gone.member))
        if left is None:
            raise gone
        self._plan = self._plan.left_with(left, self._plan.members.index(gone.member))
        self._dropped = False
        position = len(self._plan.received) if self._is_behind else self._transcript.position
        notice = Notice(NoticeKind.MEMBER_GONE, gone.member, position, gone.message)
        self._notices.append(notice)
        return notice

    async def _turn(self) -> AsyncGenerator[Update, None]:
        """A token by all, or a run by one.

        A run is fixed when it is planned. If its replica is lost, another one of the same member
        is given the transcript and draws the rest of the run: the same tokens, because every
        uniform is fixed by its position.
        """
        self._plan = without_lost(self._plan, self._losses, self._transcript.position)
        method, position = self._plan.method, self._transcript.position
        if self._speculator is not None and self._speech is None:
            block = await self._speculator.take_turn(self._plan)
            if block is not None:
                return _only(self._take(block))
        if isinstance(method, Together):
            return _only(await self._draw_together(method))
        speech, self._speech = self._speech, None
        if speech is None:
            if isinstance(method, Routed) and not method.is_decided(position):
                fits = await ask_gate(method, self._seats, self._transcript)
                if not fits:
                    self._finish = FinishReason.CONTEXT_FULL
                    return _only(Update())
            speech = self._next_speech(method)
        return self._speak(speech)

    def _next_speech(self, method: Method) -> Speech:
        position = self._transcript.position
        most = self._plan.max_tokens - position
        if self._speculator is not None:
            most = self._speculator.most_plain(self._plan)
        run = method.next_run(position, most, dropped=self._dropped)
        weights: tuple[tuple[str, float], ...] = ()
        if isinstance(method, AdaptiveMixture | Routed):
            weights = tuple(self._plan.weights.items())  # before the run tells more
        return Speech(run, self._transcript.length, weights)

    def _take(self, block: Block) -> Update:
        """Commit what a draft led to, as far as the reply goes."""
        update = Update()
        for drawn in block.drawn:
            if drawn.combined is not None:
                self._law.note(drawn.combined)
            part = self._transcript.commit(drawn.member, [drawn.token], drawn.shares, drawn.bound)
            update.text += part.text
            update.tokens += part.tokens
            if self._transcript.stop_string:
                return update
        if block.end_law is not None:
            self._law.note(block.end_law)
        if block.is_end:
            self._finish = FinishReason.END_OF_TURN
        return update

    async def _draw_together(self, method: Together) -> Update:
        began_s = self._ticks_s()
        is_timed = self._speculator is not None and self._seats.have_read(method.speakers)
        combined = await combined_next(method, self._seats, self._transcript)
        if self._speculator is not None and is_timed:
            self._speculator.note_plain(TOGETHER, 1, self._ticks_s() - began_s)
        if combined is None:
            self._finish = FinishReason.CONTEXT_FULL
            return Update()
        self._law.note(combined)
        plan, position = self._plan, self._transcript.position
        if position < len(plan.received):
            recall_together(plan, self._transcript, plan.received[position])
            assert isinstance(method.rule, Learner), "others need not be told again"
            method.rule.learn(combined.told, plan.received[position].token.id)
            return Update()
        drawn = drawn_together(combined, method, plan, position)
        if drawn is None:
            self._finish = FinishReason.END_OF_TURN
            return Update()
        if isinstance(method.rule, Learner):
            method.rule.learn(combined.told, drawn.token.id)
        return self._transcript.commit(drawn.member, [drawn.token], drawn.shares, drawn.bound)

    async def _speak(self, speech: Speech) -> AsyncGenerator[Update, None]:
        """One run, on as many replicas as it takes."""
        run, transcript = speech.run, self._transcript
        while not self._is_done(run):
            try:
                seat = await self._seats.take(run.member)
                known, position = seat.known, transcript.position
                step = step_for(self._plan, speech, transcript, known)
                async with aclosing(seat.run(step)) as events:
                    async for event in events:
                        self._listen(run.member, known, event)
                        if event.tokens:
                            yield transcript.commit(
                                run.member, event.tokens, weights=speech.weights
                            )
                            seat.known = transcript.length
                            self._seats.progress(run.member)
                        if transcript.stop_string:
                            return
                        if event.end is not None:
                            self._end_run(event.end)
                num_said = transcript.position - position
                if self._speculator is not None and known and num_said:
                    self._speculator.note_plain(run.member, num_said, seat.step_s)
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

    def _end_run(self, end: RunEnd) -> None:
        self._dropped = end in (RunEnd.BORDER, RunEnd.DOUBT)
        if end is RunEnd.DOUBT:
            assert isinstance(self._plan.method, Cascade), "only these may doubt"
            self._plan.method.doubt(self._transcript.position)
        self._finish = _FINISHES.get(end)

    def _outcome(self, finish: FinishReason | None) -> Outcome:
        assert finish is not None, "a reply ends for a reason"
        return Outcome(
            finish_reason=finish,
            stop_string=self._transcript.stop_string,
            seed=self._plan.seed,
            blend=self._plan.blend.name,
            revision=self._plan.blend.revision,
            num_tokens=self._transcript.position,
            weights=self._plan.weights,
            law=self._law.law,
            dropped_share=self._law.dropped_share,
            usage=self.usage,
            notices=tuple(self._notices),
        )


async def _only(update: Update) -> AsyncGenerator[Update, None]:
    yield update
