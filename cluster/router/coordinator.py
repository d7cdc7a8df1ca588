"""One generation: draws the schedule, runs it on members, survives the loss of replicas."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping

from cluster.blending.adaptive import AdaptiveMixture
from cluster.blending.base import Learner, Method, Together
from cluster.blending.combined import Mean, Product
from cluster.blending.losing import without
from cluster.blending.routing import Cascade, Routed
from cluster.errors import MemberGone
from cluster.members.base import Form, Member, RunEnd
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
from cluster.router.speaking import Speaking
from cluster.router.speculating import TOGETHER, Block, Speculator
from cluster.router.steps import Speech
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
        self._is_seated = False
        self._speaking: Speaking | None = None  # who has the word, if one member has
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
        transcript, last = self._transcript, Update()
        try:
            if self._is_behind and not self._needs_views:
                self._recall({})
            with minding_format(self._plan):
                while self._finish is None:
                    try:
                        update = await self._next()
                    except MemberGone as gone:
                        self._speaking = None
                        await self._seats.leave()  # the others may have been stopped in mid-step
                        update = Update(notices=(self._go_on_without(gone),))
                    if self._speaking is None:
                        self._end_if_due()
                    if transcript.stop_string:
                        last = update  # shown with the outcome: nobody can ask for more
                    elif update.text or update.tokens or update.notices:
                        yield update
            rest = transcript.finish()
            self._end_if_due()
        finally:
            await self._seats.leave()
        tokens = [*last.tokens, *rest.tokens]
        yield Update(last.text + rest.text, tokens, self._outcome(self._finish))

    async def _next(self) -> Update:
        """The next piece; empty where something had to be done before there can be one."""
        if not self._is_seated:
            await sit_down(self._plan, self._seats, self._transcript)
            self._is_seated = True
            await self._stand()
            return Update()
        if self._speaking is None:
            return await self._turn()
        update = await self._speaking.heard()
        if self._speaking.is_over:
            self._end_run(self._speaking)
            self._speaking = None
        return update

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

    async def _turn(self) -> Update:
        """A token by all, what a draft led to, or the word for one member."""
        self._plan = without_lost(self._plan, self._losses, self._transcript.position)
        method, position = self._plan.method, self._transcript.position
        if self._speculator is not None and self._speech is None:
            block = await self._speculator.take_turn(self._plan)
            if block is not None:
                return self._take(block)
        if isinstance(method, Together):
            return await self._draw_together(method)
        speech, self._speech = self._speech, None
        if speech is None:
            if isinstance(method, Routed) and not method.is_decided(position):
                fits = await ask_gate(method, self._seats, self._transcript)
                if not fits:
                    self._finish = FinishReason.CONTEXT_FULL
                    return Update()
            speech = self._next_speech(method)
        self._speaking = Speaking(self._plan, speech, self._seats, self._transcript)
        return Update()

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

    def _end_run(self, speaking: Speaking) -> None:
        if speaking.end is None:
            return
        self._dropped = speaking.end in (RunEnd.BORDER, RunEnd.DOUBT)
        if speaking.end is RunEnd.DOUBT:
            assert isinstance(self._plan.method, Cascade), "only these may doubt"
            self._plan.method.doubt(self._transcript.position)
        self._finish = _FINISHES.get(speaking.end)
        if self._speculator is not None and speaking.fair_s is not None:
            self._speculator.note_plain(speaking.member, speaking.num_said, speaking.fair_s)

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
