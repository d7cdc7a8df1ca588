"""Takes a reply's turns again from the tokens that its caller has, up to where these end.

A reply that another router began stands after n tokens where it stood there: in a run of the same
member, with as much of it left, under the same weights. How far a run went, the judge of the
replicas says; who spoke, the tokens say. So no gate is asked again and nothing is drawn again, and
what the caller has stands even where this machine's numbers would have said something else. Weights
that follow the transcript need every speaker's view of it, which takes one pass each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

from cluster.blending.adaptive import AdaptiveMixture
from cluster.blending.base import Run, Together
from cluster.blending.losing import without
from cluster.blending.routing import Cascade, Routed
from cluster.engine.types import Verdict
from cluster.errors import InternalError, InvalidRequest
from cluster.members.base import Rank, RunEnd
from cluster.members.judge import RunJudge
from cluster.members.reply import TAIL_BYTES
from cluster.router.notices import Notice
from cluster.router.on_each import all_of
from cluster.router.plan import Plan
from cluster.router.resumption import Recalled, not_of_this_reply
from cluster.router.seats import Seats
from cluster.router.steps import Speech, draw_for
from cluster.router.together import told
from cluster.router.transcript import Transcript
from cluster.text.borders import Border

Views = Mapping[int, Sequence[float]]  # by member: its log-probability of each token


async def views_of(plan: Plan, seats: Seats) -> Views:
    """What every speaker thinks of the tokens that the caller has."""
    whole = Transcript(plan.members, plan.form, stop=())
    for received in plan.received:
        whole.recall(received.member, received.token)
    rank = Rank(whole.position, num_top=1, score_news=True)

    async def view(member: int) -> Sequence[float]:
        *_, answer = await told(member, rank, seats, whole)
        if answer.end is not RunEnd.CONTEXT_FULL:
            return answer.news_logprobs
        (await seats.take(member)).known = 0
        *_, answer = await told(member, rank, seats, whole, whole.length - 1)
        return [*answer.news_logprobs, 0.0]  # of the last one that fits no weight depends any more

    speakers = plan.method.speakers
    return dict(zip(speakers, await all_of(map(view, speakers)), strict=True))


@contextmanager
def minding_format(plan: Plan) -> Iterator[None]:
    """A reply that leaves its format through what the caller says of it is the caller's mistake."""
    try:
        yield
    except InternalError as error:
        if not plan.received or error.reason != "FORMAT_LEFT":
            raise
        raise InvalidRequest(
            "NOT_THIS_REPLY",
            f"got tokens that the request's format excludes: {error.message}",
            field="resumption.tokens",
        ) from None


def recall_together(plan: Plan, transcript: Transcript, received: Recalled) -> None:
    """Take a token that all members drew; raises InvalidRequest for one they cannot have drawn."""
    spelled, token = plan.tokens.bytes, received.token
    position = transcript.position
    if position >= plan.max_tokens:
        raise _after_the_end(position, plan)
    if token.id >= len(spelled) or token.id in plan.tokens.end_ids:
        raise not_of_this_reply(position, f"id {token.id}", "that of a token of text", "id")
    if token.bytes != spelled[token.id]:
        expected = f"{spelled[token.id]!r}, what id {token.id} stands for"
        raise not_of_this_reply(position, repr(token.bytes), expected, "bytes")
    _take(transcript, received)


def without_lost(plan: Plan, losses: deque[Notice], position: int) -> Plan:
    """The plan without members that were gone when the token at the position was drawn.

    Raises InvalidRequest where such a reply cannot have gone on.
    """
    while losses and losses[0].position <= position:
        name = losses.popleft().member
        left = without(plan.method, plan.members.index(name))
        if left is None or plan.blend.spec.on_member_loss != "renormalise":
            raise InvalidRequest(
                "NOT_THIS_REPLY",
                f"got that member {name!r} was gone; expected a reply that ended there, by the "
                "blend's on_member_loss",
                field="resumption.notices",
            )
        plan = plan.left_with(left, plan.members.index(name))
    return plan


class Recall:
    """A reply by turns, as far as it was received."""

    def __init__(
        self, plan: Plan, transcript: Transcript, views: Views, losses: deque[Notice]
    ) -> None:
        """`views` are needed where weights follow the reply; `losses` are taken as they come."""
        self.known = dict.fromkeys(plan.method.speakers, 0)  # what each had read when it broke off
        self.dropped = False  # the last run ended at a border, its next token dropped there
        self.is_over = True  # the last run is
        self.plan = plan
        self._transcript = transcript
        self._views = views
        self._losses = losses
        self._speech: Speech | None = None

    @property
    def speech(self) -> Speech:
        """The last run."""
        assert self._speech is not None, "something was received"
        return self._speech

    def take_turns(self) -> None:
        """Take all tokens; raises InvalidRequest for those that no such reply can have."""
        transcript = self._transcript
        while (position := transcript.position) < len(self.plan.received):
            plan = self.plan = without_lost(self.plan, self._losses, position)
            if position >= plan.max_tokens:
                raise _after_the_end(position, plan)
            run, evidence = self._next_run(position), plan.evidence
            weights: tuple[tuple[str, float], ...] = ()
            if evidence is not None and isinstance(plan.method, AdaptiveMixture):
                weights = tuple(zip(plan.members, evidence.weights(), strict=True))
            self._speech = Speech(run, transcript.length, weights)
            self._say(run)
            self._note(run)
            if isinstance(plan.method, Routed):
                self._weigh(plan.method, self._speech, plan.received[transcript.position - 1])

    def _next_run(self, position: int) -> Run:
        """Who spoke from here, and how far he would have."""
        plan, method = self.plan, self.plan.method
        assert not isinstance(method, Together), "these take no turns"
        speaker, left = plan.received[position].member, plan.max_tokens - position
        if isinstance(method, Routed):
            method.follow(position, speaker, plan.received[position].weights)
        run = method.next_run(position, left, dropped=self.dropped)
        if isinstance(method, Cascade) and run.member == method.first != speaker:
            method.doubt(position)
            run = method.next_run(position, left, dropped=True)
        if run.member != speaker and self._may_differ:
            return replace(run, member=speaker)
        if run.member != speaker:
            names = plan.members
            raise not_of_this_reply(
                position, repr(names[speaker]), f"{names[run.member]!r}", "member"
            )
        return run

    @property
    def _may_differ(self) -> bool:
        """Whether its weights are computed, so that rounding may have decided otherwise before."""
        return bool(self.plan.decided) or self.plan.evidence is not None

    def _say(self, run: Run) -> None:
        """Take the run's tokens for as long as its judge would have gone on."""
        plan, transcript = self.plan, self._transcript
        draw = draw_for(plan, run, run.position)
        before = transcript.tail(TAIL_BYTES) if draw.looks_back else b""
        judge = RunJudge(draw, seed=plan.seed, token_bytes=(), end_ids=(), before=before)
        hands_over = run.border is not Border.NONE or isinstance(plan.method, Cascade)
        self.is_over = self.dropped = False
        end = self._losses[0].position if self._losses else len(plan.received)
        for received in islice(plan.received, run.position, end):
            verdict = judge.judge(received.token.bytes)
            is_other = received.member != run.member
            if is_other and not hands_over and not self._may_differ:
                names = plan.members
                given, expected = names[received.member], names[run.member]
                raise not_of_this_reply(transcript.position, repr(given), f"{expected!r}", "member")
            if is_other or verdict is Verdict.DROP_AND_STOP:
                self.is_over, self.dropped = True, hands_over
                return
            _take(transcript, received)
            if verdict is Verdict.KEEP_AND_STOP:
                self.is_over = True
                return
        self.is_over = bool(self._losses)  # it was cut short: a member was gone

    def _weigh(self, gate: Routed, speech: Speech, last: Recalled) -> None:
        """By the last weights: who is drawn again at a border goes on in the same run here."""
        gate.follow(speech.run.position, speech.run.member, last.weights)
        named = zip(self.plan.members, last.weights, strict=False)
        self._speech = replace(speech, weights=tuple(named))

    def _note(self, run: Run) -> None:
        """What the speaker had read by then, and what it thought of it."""
        evidence, member, end = self.plan.evidence, run.member, self._transcript.position
        if evidence is not None and member in self._views:
            begin = self.known[member]
            evidence.note(member, begin, self._views[member][begin:end])
        self.known[member] = end


def _take(transcript: Transcript, received: Recalled) -> None:
    position = transcript.position
    transcript.recall(received.member, received.token)
    if transcript.stop_string:
        given = f"the rest of the stop string {transcript.stop_string!r}"
        raise not_of_this_reply(position, given, "the reply to end before it", "bytes")


def _after_the_end(position: int, plan: Plan) -> Exception:
    return not_of_this_reply(position, "a token", f"none after the last of {plan.max_tokens}", "id")
