"""Rules that combine the members' distributions of every token, and draw from what they make.

`Mean` and `Product` are the ensembles; `Proxy` is Tuning Language Models by Proxy (2401.08565),
`Contrast` contrastive decoding (2210.15097). One sampling law for all: a mean of probabilities
warps each member first, so that it has the law of `mixture`; what combines log-probabilities
combines them first and warps once. At temperature 0 all take the argmax of what is not warped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.blending.base import Ask, Combined
from cluster.blending.warping import Warp, log_normalised, warped
from cluster.distribution import Distribution, Ids, Logprobs

_ALL = 0  # in an ask: the whole vocabulary


@dataclass(frozen=True)
class _Ensemble:
    """Members with weights, who tell their likeliest ids and then those that only others told."""

    weights: Sequence[float]  # positive, summing to 1
    num_candidates: int  # 0: all
    warp: Warp

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token."""
        return [Ask(self.num_candidates)] * len(self.weights)

    def more_asks(self, told: Sequence[Distribution]) -> list[Ask | None]:
        """Of each member, the ids that only others told."""
        ids = _union(told)
        missing = [distribution.lacks(ids) for distribution in told]
        return [
            replace(ask, num_top=1, ids=tuple(lacked.tolist())) if len(lacked) else None
            for ask, lacked in zip(self.first_asks(), missing, strict=True)
        ]


class Mean(_Ensemble):
    """Σ λᵢ pᵢ, each pᵢ warped by its member. Truncated, it leaves out exactly `bound` of the mass.

    At temperature 0 the bound is 0 or 1: whether the best id is known to be the best.
    """

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token."""
        return [Ask(self.num_candidates, is_warped=not self.warp.is_greedy)] * len(self.weights)

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The mixture on all ids that any member told."""
        ids = _union(told)
        parts = np.stack([w * np.exp(d.of(ids)) for w, d in zip(self.weights, told, strict=True)])
        mass = parts.sum(axis=0)
        rest = sum(w * d.rest_outside(ids) for w, d in zip(self.weights, told, strict=True))
        with np.errstate(divide="ignore"):
            logprobs = log_normalised(np.log(mass))
        if self.warp.is_greedy:
            logprobs = warped(logprobs, self.warp)
            rest = float(rest > mass.max())
        return Combined(ids, logprobs, _shares(parts), rest)


class Product(_Ensemble):
    """softmax Σ λᵢ log pᵢ, then warped.

    Truncated, the ids left out weigh at most Π restᵢ^λᵢ (Hölder), which bounds the error before
    warping.
    """

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The product on all ids that any member told."""
        ids = _union(told)
        parts = np.stack([w * d.of(ids) for w, d in zip(self.weights, told, strict=True)])
        weighed = parts.sum(axis=0)
        outside = np.prod(
            [d.rest_outside(ids) ** w for w, d in zip(self.weights, told, strict=True)]
        )
        inside = np.exp(weighed).sum()
        bound = float(outside / (outside + inside))
        if self.warp.is_greedy:
            bound = float(outside > np.exp(weighed.max()))
        shares = np.tile(np.asarray(self.weights)[:, None], (1, len(ids)))
        return Combined(ids, warped(log_normalised(weighed), self.warp), shares, bound)


@dataclass(frozen=True)
class Proxy:
    """log p_base + α (log p_expert - log p_anti), then warped (2401.08565, equation 1)."""

    base: int  # these three: indices into what is told
    expert: int
    anti: int
    alpha: float
    warp: Warp

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token."""
        return [Ask(_ALL)] * 3

    def more_asks(self, told: Sequence[Distribution]) -> list[Ask | None]:
        """What to ask next, knowing this much."""
        return [None] * 3

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The base's distribution, steered."""
        ids = told[self.base].ids
        base = told[self.base].logprobs
        with np.errstate(invalid="ignore"):
            steering = self.alpha * (told[self.expert].of(ids) - told[self.anti].of(ids))
            steered = _where_finite(base + steering)
        return Combined(ids, warped(log_normalised(steered), self.warp), _all_of(self.base, ids))


@dataclass(frozen=True)
class Contrast:
    """log p_expert - β log p_amateur where p_expert ≥ plausibility · max p_expert, then warped.

    2210.15097, equations 2 to 4. The plausible ids are few, so nothing is ever left out.
    """

    expert: int
    amateur: int
    beta: float
    plausibility: float
    num_candidates: int
    warp: Warp

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token; the amateur runs on meanwhile."""
        asks = [Ask(1), Ask(1)]
        asks[self.expert] = Ask(self.num_candidates)
        return asks

    def more_asks(self, told: Sequence[Distribution]) -> list[Ask | None]:
        """The expert's other ids if some may be plausible, then the amateur's view of all such."""
        asks: list[Ask | None] = [None, None]
        expert = told[self.expert]
        if expert.rest > 0 and self._is_plausible(expert)[np.argmin(expert.logprobs)]:
            asks[self.expert] = Ask(_ALL)
            return asks
        missing = told[self.amateur].lacks(expert.ids[self._is_plausible(expert)])
        if len(missing):
            asks[self.amateur] = Ask(1, tuple(missing.tolist()))
        return asks

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The contrast on the plausible ids."""
        expert = told[self.expert]
        plausible = self._is_plausible(expert)
        ids = expert.ids[plausible]
        with np.errstate(invalid="ignore"):
            amateur = self.beta * told[self.amateur].of(ids)
            contrast = _where_finite(expert.logprobs[plausible] - amateur)
        return Combined(
            ids, warped(log_normalised(contrast), self.warp), _all_of(self.expert, ids, of=2)
        )

    def _is_plausible(self, expert: Distribution) -> NDArray[np.bool_]:
        is_plausible: NDArray[np.bool_] = expert.logprobs >= (
            expert.logprobs.max() + np.log(self.plausibility)
        )
        return is_plausible


def _union(told: Sequence[Distribution]) -> Ids:
    ids = told[0].ids
    for other in told[1:]:
        if len(other.ids) != len(ids) or not np.array_equal(other.ids, ids):
            ids = np.union1d(ids, other.ids)
    return ids


def _where_finite(logits: Logprobs) -> Logprobs:
    """What a member excludes has no part, on whichever side of a difference that member stands."""
    return np.where(np.isfinite(logits), logits, -np.inf)


def _shares(parts: Logprobs) -> Logprobs:
    total = parts.sum(axis=0)
    shares = np.full_like(parts, 1 / len(parts))
    np.divide(parts, total, out=shares, where=total > 0)
    return shares


def _all_of(member: int, ids: Ids, of: int = 3) -> Logprobs:
    shares = np.zeros((of, len(ids)))
    shares[member] = 1.0
    return shares
