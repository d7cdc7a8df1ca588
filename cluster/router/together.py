"""One token by all members: each tells its distribution, a rule makes one of them, one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.blending.base import Ask, Combined, Rule, Together
from cluster.blending.warping import draw
from cluster.distribution import Distribution
from cluster.errors import ReplicaLost
from cluster.members.base import Rank, StepEvent, StepToken, TopCandidate
from cluster.randomness import Purpose, key
from cluster.router.answers import Law
from cluster.router.on_each import all_of
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.transcript import Transcript

MAX_TOLD_BYTES = 4 * 1024 * 1024  # of one step's answer


@dataclass(slots=True)
class LawSoFar:
    """How exactly a reply has the law of its rule."""

    law: Law = Law.EXACT
    dropped_share: float = 0.0

    def note(self, combined: Combined) -> None:
        """What its last token was drawn from."""
        self.dropped_share = sum(law.dropped for law in combined.told)
        if self.dropped_share > 0:
            self.law = Law.APPROXIMATE
        elif combined.bound > 0:
            self.law = Law.BOUNDED


async def combined_next(method: Together, seats: Seats, transcript: Transcript) -> Combined | None:
    """What all members together make of the next token; None when one's context is full.

    All are asked at the same time. Whoever is asked again of the same token, because others told of
    ids that it did not, answers without a forward pass.
    """
    asks: Sequence[Ask | None] = method.rule.first_asks()
    told: list[Distribution] = []
    while any(asks):
        ranks = [
            (i, Rank(transcript.position, ask.num_top, ask.ids, ask.is_warped))
            for i, ask in zip(method.speakers, asks, strict=True)
            if ask
        ]
        news = await all_of(_tell(i, rank, seats, transcript) for i, rank in ranks)
        if not all(news):
            return None
        told = _merged(told, asks, [only for (only,) in news])
        asks = method.rule.more_asks(told)
    return replace(method.rule.combine(told), told=tuple(told))


async def logprobs_along(
    plan: Plan, seats: Seats, transcript: Transcript, tokens: Sequence[StepToken]
) -> list[float]:
    """Log-probabilities of given tokens, each after those before it, under all members together.

    The tokens are known, so a member tells of many positions in one step, and tells everything: the
    rule asks of that what it asks of members. How long a step is, its answer's size decides.
    """
    assert isinstance(plan.method, Together)
    rule, speakers = plan.method.rule, plan.method.speakers
    num_at_once = max(1, MAX_TOLD_BYTES // (4 * len(plan.tokens.bytes)))
    found = []
    for begin in range(0, len(tokens), num_at_once):
        targets = tokens[begin : begin + num_at_once]
        end = begin + len(targets)
        transcript.commit(0, list(tokens[max(0, begin - 1) : end - 1]))
        works = [
            _tell(
                i,
                Rank(end - 1, is_warped=ask.is_warped, num_positions=len(targets)),
                seats,
                transcript,
            )
            for i, ask in zip(speakers, rule.first_asks(), strict=True)
        ]
        told = zip(*await all_of(works), strict=True)
        for target, whole in zip(targets, told, strict=True):
            found.append(combined_of(rule, whole, (target.id,)).logprob_of(target.id))
    return found


def combined_of(rule: Rule, whole: Sequence[Distribution], ids: tuple[int, ...] = ()) -> Combined:
    """What a rule makes of members that would tell all this, if it asked, and tell of some ids."""
    asks: Sequence[Ask | None] = [replace(ask, ids=ids) for ask in rule.first_asks()]
    told: list[Distribution] = []
    while any(asks):
        news = [d.part(a.num_top, a.ids) for d, a in zip(whole, asks, strict=True) if a]
        told = _merged(told, asks, news)
        asks = rule.more_asks(told)
    return replace(rule.combine(told), told=tuple(told))


def _merged(
    told: list[Distribution], asks: Sequence[Ask | None], news: list[Distribution]
) -> list[Distribution]:
    """What is known with what those asked have told."""
    if not told:
        return news
    fresh = iter(news)
    return [d.merged(next(fresh)) if ask else d for d, ask in zip(told, asks, strict=True)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that stands, and who drew it."""

    member: int  # of several, the one with the largest share
    token: StepToken
    shares: tuple[tuple[str, float], ...] = ()  # by name, where several drew it together ...
    bound: float = 0.0
    combined: Combined | None = None  # ... from this


def drawn_together(combined: Combined, method: Together, plan: Plan, position: int) -> Drawn | None:
    """The draw at a position; None where it ends the turn."""
    token, at = drawn_token(combined, plan, position)
    if token.id in plan.tokens.end_ids and position >= plan.end_allowed_from:
        return None
    shares = dict(zip(method.speakers, combined.shares[:, at].tolist(), strict=True))
    named = tuple((plan.members[index], share) for index, share in shares.items())
    leading = max(shares, key=lambda index: shares[index])
    return Drawn(leading, token, named, combined.bound, combined)


def drawn_token(combined: Combined, plan: Plan, position: int) -> tuple[StepToken, int]:
    """The token at a position, and its place among the combined ids."""
    spelled = plan.tokens.bytes
    at = draw(combined.ids, combined.logprobs, key(plan.seed, Purpose.TOKEN, position))
    top: tuple[TopCandidate, ...] = ()
    if plan.num_top:  # sorting a vocabulary costs more than all the rest
        order = np.lexsort((combined.ids, -combined.logprobs))[: plan.num_top]
        pairs = zip(combined.ids[order].tolist(), combined.logprobs[order].tolist(), strict=True)
        top = tuple(TopCandidate(id, spelled[id], p) for id, p in pairs if p > -np.inf)
    id = int(combined.ids[at])
    return StepToken(id, spelled[id], float(combined.logprobs[at]), top), at


async def _tell(index: int, rank: Rank, seats: Seats, transcript: Transcript) -> list[Distribution]:
    """One member's answer; empty when its context is full."""
    events = await told(index, rank, seats, transcript)
    return [event.distribution for event in events if event.distribution is not None]


async def told(
    index: int, rank: Rank, seats: Seats, transcript: Transcript, length: int | None = None
) -> list[StepEvent]:
    """One member's answer after the transcript's `length`, on as many replicas as it takes."""
    end = transcript.length if length is None else length
    while True:
        try:
            seat = await seats.take(index)
            answer = await seat.answer(transcript.step(seat.known, rank, end))
            seat.known = end
            seats.progress(index)
            return answer
        except ReplicaLost as error:
            await seats.lose(index, error)
