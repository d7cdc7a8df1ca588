"""One token by all members: each tells its distribution, a rule makes one of them, one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from cluster.blending.base import Ask, Combined, Together
from cluster.blending.warping import draw
from cluster.distribution import Distribution
from cluster.errors import ReplicaLost
from cluster.members.base import Rank, StepEvent, StepToken, TopCandidate
from cluster.randomness import Purpose, key
from cluster.router.on_each import all_of
from cluster.router.plan import Plan
from cluster.router.seats import Seats
from cluster.router.transcript import Transcript


async def combined_next(
    method: Together, seats: Seats, transcript: Transcript, ids: tuple[int, ...] = ()
) -> Combined | None:
    """What all members together make of the next token; None when one's context is full.

    All are asked at the same time; `ids` are told of, however unlikely. Whoever is asked again of
    the same token, because others told of ids that it did not, answers without a forward pass.
    """
    asks: Sequence[Ask | None] = [replace(ask, ids=ids) for ask in method.rule.first_asks()]
    told: list[Distribution] = []
    while any(asks):
        news = await all_of(
            [
                _tell(i, ask, seats, transcript)
                for i, ask in zip(method.speakers, asks, strict=True)
                if ask
            ]
        )
        if any(distribution is None for distribution in news):
            return None
        fresh = iter(distribution for distribution in news if distribution is not None)
        if not told:
            told = list(fresh)
        else:
            told = [d.merged(next(fresh)) if ask else d for d, ask in zip(told, asks, strict=True)]
        asks = method.rule.more_asks(told)
    return replace(method.rule.combine(told), told=tuple(told))


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


async def _tell(index: int, ask: Ask, seats: Seats, transcript: Transcript) -> Distribution | None:
    """One member's answer; None when its context is full."""
    rank = Rank(transcript.position, ask.num_top, ask.ids, ask.is_warped)
    return (await told(index, rank, seats, transcript)).distribution


async def told(index: int, rank: Rank, seats: Seats, transcript: Transcript) -> StepEvent:
    """One member's answer, from as many replicas as it takes."""
    while True:
        try:
            seat = await seats.take(index)
            async with aclosing(seat.run(transcript.step(seat.known, rank))) as events:
                async for event in events:
                    answer = event
            seat.known = transcript.length
            seats.progress(index)
            return answer
        except ReplicaLost as error:
            await seats.lose(index, error)
