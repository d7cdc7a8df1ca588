"""A drafter runs ahead, the others decide in one pass each; what stands is what they would draw.

Everybody draws with the noise of (seed, position), so a draft is accepted where the draw that
decides is that very token, and the first that is not stands instead. No distribution of the
drafter is needed, and nothing of the text depends on who drafted, how far, or whether
(docs/decisions/0028). What drafts have cost and brought goes to the blend's `Drafting`, which says
how long the next one is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cluster.blending.base import Combined, Method, Together
from cluster.blending.mixture import Mixture
from cluster.blending.speculation import Drafting
from cluster.distribution import Distribution
from cluster.errors import ReplicaLost
from cluster.members.base import Draw, Rank, RunEnd, Step, StepEvent, StepToken
from cluster.router.on_each import all_of
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.together import MAX_TOLD_BYTES, Drawn, combined_of, drawn_together
from cluster.router.transcript import Transcript

TOGETHER = -1  # stands for all members, where no one speaks alone

_MOST_PLAIN = 16


@dataclass(frozen=True, slots=True)
class Decided:
    """What one member said to a draft: its draws, up to the first that refutes it."""

    offsets: Sequence[int]  # in the draft, at which it was to draw; the last may be behind it
    tokens: Sequence[StepToken]
    end: RunEnd | None


@dataclass(frozen=True, slots=True)
class Block:
    """The tokens that a draft led to; the last one may be none of it."""

    drawn: Sequence[Drawn]
    num_agreed: int  # of them, those that were drafted
    num_decided: int  # drafted tokens that others than the drafter have decided
    is_end: bool = False  # the turn is over behind them ...
    end_law: Combined | None = None  # ... drawn from this, where members draw together


class Speculator:
    """Drafts for one reply."""

    def __init__(
        self,
        drafting: Drafting,
        seats: Seats,
        transcript: Transcript,
        ticks_s: Callable[[], float],
    ) -> None:
        self._drafting = drafting
        self._seats = seats
        self._transcript = transcript
        self._ticks_s = ticks_s
        self._num_turns = 0

    def _next_length(self, plan: Plan) -> int:
        """How many tokens to draft now; 0: take a plain turn.

        The first turn is always plain: no first token waits for a draft.
        """
        method, position = plan.method, self._transcript.position
        self._num_turns += 1
        if plan.speculation is None or self._num_turns == 1 or position < len(plan.received):
            return 0
        if method.speakers == (plan.speculation.draft,):  # the others are gone
            return 0
        wanted = self._drafting.next_length(plan.speculation, _shares(method))
        most = min(wanted, plan.max_tokens - position - 1, self._seats.room - position - 1)
        if isinstance(method, Together):
            return max(0, min(most, MAX_TOLD_BYTES // (4 * len(plan.tokens.bytes)) - 1))
        assert isinstance(method, Mixture), "others do not know who speaks"
        # A draft ends where another member speaks: there that member's pass gives one token more.
        others = (n for n in range(most, 0, -1) if self._is_decided(plan, method, n))
        return next(others, 0)

    def most_plain(self, plan: Plan) -> int:
        """How many tokens a plain turn may have, so that the next decision is not far."""
        left = plan.max_tokens - self._transcript.position
        if plan.speculation is None:
            return left
        return min(left, 1 if self._num_turns == 1 else _MOST_PLAIN)

    async def take_turn(self, plan: Plan) -> Block | None:
        """Draft, decide, settle; None where a plain turn is to be taken instead."""
        num_tokens = self._next_length(plan)
        if not num_tokens:
            return None
        assert plan.speculation is not None
        method, drafter, seats = plan.method, plan.speculation.draft, self._seats
        is_fair = seats.have_read({*plan.seated})  # who still reads the prompt takes longer
        began_s = self._ticks_s()
        want = Draw(self._transcript.position, num_tokens, by_id=isinstance(method, Together))
        events = await self._ask(drafter, want)
        draft = [token for event in events for token in event.tokens]
        drafted_s = self._ticks_s()
        if isinstance(method, Together):
            block = await self._decide_together(plan, method, draft)
        else:
            block = await self._decide_in_turns(plan, draft, events[-1].end)
        if is_fair and draft and block.num_decided:
            refuted = block.num_agreed < len(draft)
            self._drafting.note_draft(len(draft), drafted_s - began_s)
            self._drafting.note_decision(
                block.num_decided, block.num_decided - refuted, self._ticks_s() - drafted_s
            )
        usage = seats.usage[drafter]
        usage.drafted_tokens += len(draft)
        usage.accepted_tokens += block.num_agreed
        return block if block.drawn or block.is_end else None

    def note_plain(self, member: int, num_tokens: int, seconds: float) -> None:
        """A turn was taken without a draft, by members that had read what came before."""
        self._drafting.note_plain(member, num_tokens, seconds)

    def _is_decided(self, plan: Plan, method: Mixture, num: int) -> bool:
        """Whether another member than the drafter speaks so many tokens from now."""
        assert plan.speculation is not None
        return method.speaker(self._transcript.position + num) != plan.speculation.draft

    async def _decide_in_turns(
        self, plan: Plan, draft: Sequence[StepToken], end: RunEnd | None
    ) -> Block:
        """Each member draws at its own positions of the draft and right behind it."""
        method, position = plan.method, self._transcript.position
        assert isinstance(method, Mixture)
        assert plan.speculation is not None
        drafter = plan.speculation.draft
        speakers = [method.speaker(position + at) for at in range(len(draft) + 1)]
        members = sorted({*speakers} - {drafter})
        offsets = {m: [at for at, who in enumerate(speakers) if who == m] for m in members}
        answers = await all_of(self._decide(m, offsets[m], draft) for m in members)
        decided = dict(zip(members, answers, strict=True))
        block = settled(draft, speakers, drafter, decided, end)
        known = position + block.num_agreed
        self._seats.know(drafter, known)
        for member, said in decided.items():
            num_said = said.offsets[len(said.tokens) - 1] + 1 if said.tokens else 0
            is_last = len(block.drawn) > block.num_agreed and block.drawn[-1].member == member
            self._seats.know(member, known + 1 if is_last else min(known, position + num_said))
        return block

    async def _decide(
        self, member: int, offsets: Sequence[int], draft: Sequence[StepToken]
    ) -> Decided:
        """One member's draws: what it drafts itself no further than its last one needs."""
        *checked, last = offsets
        want = Draw(self._transcript.position, last + 1, num_drafted=last, checked=tuple(checked))
        events = await self._ask(member, want, draft[:last])
        tokens = [token for event in events for token in event.tokens]
        return Decided(offsets, tokens, events[-1].end)

    async def _decide_together(
        self, plan: Plan, method: Together, draft: Sequence[StepToken]
    ) -> Block:
        """All tell what they make of each drafted position and the next one; the rule draws."""
        position, num = self._transcript.position, len(draft)
        told = await all_of(
            self._tell(
                member, Rank(position + num, is_warped=ask.is_warped, num_positions=num + 1), draft
            )
            for member, ask in zip(method.speakers, method.rule.first_asks(), strict=True)
        )
        found: list[Drawn] = []
        block = Block(found, 0, 0)
        if all(len(laws) == num + 1 for laws in told):  # else one's context is full
            for at, laws in enumerate(zip(*told, strict=True)):
                combined, num_decided = combined_of(method.rule, laws), min(at + 1, num)
                one = drawn_together(combined, method, plan, position + at)
                if one is None:
                    block = Block(found, at, num_decided, is_end=True, end_law=combined)
                    break
                found.append(one)
                block = Block(found, at, num_decided)
                if at == num or one.token.id != draft[at].id:
                    break
        for member in {*method.speakers}:
            self._seats.know(member, position + block.num_agreed)
        return block

    async def _tell(
        self, member: int, rank: Rank, draft: Sequence[StepToken]
    ) -> list[Distribution]:
        events = await self._ask(member, rank, draft)
        return [event.distribution for event in events if event.distribution is not None]

    async def _ask(
        self, member: int, want: Draw | Rank, draft: Sequence[StepToken] = ()
    ) -> list[StepEvent]:
        """One member's answer behind transcript and draft, on as many replicas as it takes.

        What is known of a draft by whom is settled when it is decided.
        """
        while True:
            try:
                seat = await self._seats.take(member)
                ids = (*self._transcript.ids(seat.known), *(token.id for token in draft))
                answer = await seat.answer(Step(seat.known, want, token_ids=ids))
                self._seats.progress(member)
                return answer
            except ReplicaLost as error:
                await self._seats.lose(member, error)


def settled(
    draft: Sequence[StepToken],
    speakers: Sequence[int],
    drafter: int,
    decided: Mapping[int, Decided],
    end: RunEnd | None,
) -> Block:
    """What stands of a draft by `drafter` that ended with `end`.

    `speakers` [len(draft) + 1]: who speaks at each of its positions and the next one. Up to the
    first position whose speaker drew another token than the drafted one, all stands; there that
    speaker's token does, whatever others said behind it.
    """
    found: list[Drawn] = []
    num_decided = 0
    for at, speaker in enumerate(speakers):
        is_drafted = at < len(draft)
        if speaker == drafter:
            if not is_drafted:
                return Block(found, at, num_decided, is_end=end is RunEnd.END_OF_TURN)
            found.append(Drawn(speaker, draft[at]))
            continue
        said = decided[speaker]
        place = said.offsets.index(at)
        num_decided += is_drafted
        if place >= len(said.tokens):
            return Block(found, at, num_decided, is_end=said.end is RunEnd.END_OF_TURN)
        found.append(Drawn(speaker, said.tokens[place]))
        if not is_drafted or said.tokens[place].id != draft[at].id:
            return Block(found, at, num_decided)
    raise AssertionError("the position behind a draft is somebody's")


def _shares(method: Method | Together) -> dict[int, float]:
    """Of the tokens, by who speaks."""
    if not isinstance(method, Mixture):
        return {TOGETHER: 1.0}
    total = sum(method.weights)
    return {member: method.weights[member] / total for member in method.speakers}
