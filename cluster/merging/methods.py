"""The rules of merging, one pure function each, and the registry of their names.

Each takes the tensors of one name, one per model and of one shape, in any floating dtype, and gives
the merged one in float32 pieces. Where all models are equal, or one has all the weight, results are
exact, not nearly so: sums are taken of differences to one of the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cluster.errors import InvalidRequest
from cluster.merging.pieces import Pieces, pieces
from cluster.merging.sphere import (
    repeated_coefficients,
    slerp_coefficients,
    spherical_coefficients,
)
from cluster.merging.thinning import Largest, random_masks

_ROUNDING = 1e-12  # what sums of shares miss 1 by


@dataclass(frozen=True, slots=True)
class Sources:
    """What one output tensor is made of."""

    name: str  # of the output tensor
    tensors: Sequence[Tensor]
    base: Tensor | None = None  # the ancestor's, where the method has one
    places: Sequence[int] = ()  # of the tensors' models in the recipe, for what is drawn at random


@dataclass(frozen=True, slots=True)
class Settings:
    """The method's parameters for this tensor; those of each model in the tensors' order."""

    weight: Sequence[float] = ()
    density: Sequence[float] = ()
    scale: Sequence[float] = ()
    normalize: bool = True
    rescale: bool = True
    factor: float = 1.0  # `lambda` in recipes
    t: float | None = None
    mean: str = "repeated"
    decay: float = 0.9
    window: float = 5
    seed: int = 0


Rule = Callable[[Sources, Settings], Pieces]


def linear(sources: Sources, settings: Settings) -> Pieces:
    """Σ w x, over Σ w where normalized.

    The average of model soups (2203.05482), SWA (1803.05407), WARM (2401.12187) and Model
    Ratatouille (2212.10445).
    """
    total = positive_sum(settings.weight) if settings.normalize else 1.0
    return _weighted_sum(sources.tensors, [weight / total for weight in settings.weight])


def ema(sources: Sources, settings: Settings) -> Pieces:
    """The exponential moving average over checkpoints, oldest first (Polyak and Juditsky 1992)."""
    num, decay = len(sources.tensors), settings.decay
    weights = [(1 - decay if at else 1.0) * decay ** (num - 1 - at) for at in range(num)]
    return _weighted_sum(sources.tensors, weights)


def lawa(sources: Sources, settings: Settings) -> Pieces:
    """The mean of the latest `window` checkpoints of a series, oldest first (2209.14981)."""
    latest = sources.tensors[-int(settings.window) :]
    return _weighted_sum(latest, [1 / len(latest)] * len(latest))


def slerp(sources: Sources, settings: Settings) -> Pieces:
    """The point at `t` along the arc from the first tensor to the second; or a mean of several."""
    gram = _gram(sources.tensors)
    if settings.t is not None:
        coefficients = slerp_coefficients(gram, settings.t)
    else:
        positive_sum(settings.weight)
        rules = {"repeated": repeated_coefficients, "spherical": spherical_coefficients}
        coefficients = rules[settings.mean](gram, np.array(settings.weight))
    return _weighted_sum(sources.tensors, coefficients.tolist())


def task_arithmetic(sources: Sources, settings: Settings) -> Pieces:
    """base + λ Σ w (x - base), over Σ w where normalized (2212.04089)."""
    total = positive_sum(settings.weight) if settings.normalize else 1.0
    shares = [settings.factor * weight / total for weight in settings.weight]
    left = 1 - sum(shares)
    left = 0.0 if abs(left) < _ROUNDING else left
    return _weighted_sum([_base(sources), *sources.tensors], [left, *shares])


def ties(sources: Sources, settings: Settings) -> Pieces:
    """Trim to the largest changes, elect a sign, merge those that agree with it (2306.01708)."""
    base = _base(sources)

    def changes_of(tensor: Tensor) -> Pieces:
        return (part - before for part, before in pieces([tensor, base]))

    keepers = [
        Largest(partial(changes_of, tensor), tensor.numel(), density)
        for tensor, density in zip(sources.tensors, settings.density, strict=True)
    ]
    for before, *parts in pieces([base, *sources.tensors]):
        kept = [keeper.next(part - before) for keeper, part in zip(keepers, parts, strict=True)]
        yield _elected(before, parts, kept, settings.weight, settings.weight, settings)


def dare_linear(sources: Sources, settings: Settings) -> Pieces:
    """Task arithmetic on changes dropped at random, the rest ÷ density (2311.03099)."""
    if all(density >= 1 for density in settings.density):
        yield from task_arithmetic(sources, settings)
        return
    total = positive_sum(settings.weight) if settings.normalize else 1.0
    masks = _random_masks(sources, settings)
    for before, *parts in pieces([_base(sources), *sources.tensors]):
        result = before.clone()
        for part, mask, weight in zip(parts, masks, _rescaled(settings), strict=True):
            kept = next(mask)[: part.numel()]
            result += (part - before).mul_(kept).mul_(settings.factor * weight / total)
        yield result


def dare_ties(sources: Sources, settings: Settings) -> Pieces:
    """DARE's random dropping instead of TIES' trimming, then TIES' election (2311.03099)."""
    masks = _random_masks(sources, settings)
    for before, *parts in pieces([_base(sources), *sources.tensors]):
        kept = [next(mask)[: part.numel()] for mask, part in zip(masks, parts, strict=True)]
        yield _elected(before, parts, kept, settings.weight, _rescaled(settings), settings)


def passthrough(sources: Sources, settings: Settings) -> Pieces:
    """The one tensor, times `scale`; 0 where a new block is to add nothing (2401.02415)."""
    (scale,) = settings.scale
    return (part if scale == 1 else part * scale for (part,) in pieces(sources.tensors))


METHODS: Mapping[str, Rule] = {
    "linear": linear,
    "ema": ema,
    "lawa": lawa,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
    "passthrough": passthrough,
}


def positive_sum(weights: Sequence[float]) -> float:
    """Σ w; raises InvalidRequest unless it is above 0."""
    total = float(sum(weights))
    if not total > 0:
        raise InvalidRequest(
            "MERGE_WEIGHTS_INVALID",
            f"got weights {', '.join(f'{w:g}' for w in weights)}, which sum to {total:g}; "
            "expected a sum above 0",
            field="parameters.weight",
        )
    return total


def _base(sources: Sources) -> Tensor:
    assert sources.base is not None, "the plan gives a base to methods on changes"
    return sources.base


def _weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Pieces:
    """Σ w x, as the first times Σ w, and what the others differ from it."""
    used = [(tensor, w) for tensor, w in zip(tensors, weights, strict=True) if w]
    if not used:
        return (torch.zeros_like(part) for (part,) in pieces(tensors[:1]))
    return _anchored([tensor for tensor, _ in used], [weight for _, weight in used])


def _anchored(tensors: Sequence[Tensor], weights: Sequence[float]) -> Pieces:
    total = sum(weights)
    for first, *others in pieces(tensors):
        result = first if total == 1 else first * total
        for other, weight in zip(others, weights[1:], strict=True):
            result = torch.add(result, other - first, alpha=weight)
        yield result


def _gram(tensors: Sequence[Tensor]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    gram = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for parts in pieces(tensors):
        rows = torch.stack(parts).double()
        gram += rows @ rows.T
    return gram.numpy()


def _random_masks(sources: Sources, settings: Settings) -> list[Pieces]:
    return [
        random_masks(density, settings.seed, sources.name, place)
        for density, place in zip(settings.density, sources.places, strict=True)
    ]


def _rescaled(settings: Settings) -> list[float]:
    """Weights that make up for what is dropped, where that is asked for."""
    pairs = zip(settings.weight, settings.density, strict=True)
    return [w / d if settings.rescale and d > 0 else w for w, d in pairs]


def _elected(
    before: Tensor,
    parts: Sequence[Tensor],
    kept: Sequence[Tensor],
    weights: Sequence[float],
    rescaled: Sequence[float],
    settings: Settings,
) -> Tensor:
    """The kept changes that have the sign of their weighted sum, summed or averaged by weight.

    Taken as differences to the first of them, so that where those that agree are equal the result
    is just that.
    """
    if settings.normalize:
        positive_sum(weights)
    changes = [
        (part - before) * (mask * weight)
        for part, mask, weight in zip(parts, kept, rescaled, strict=True)
    ]
    is_up = torch.stack(changes).sum(0) >= 0
    agrees = [(change > 0) & is_up | (change < 0) & ~is_up for change in changes]
    first, amount, divisor = before.clone(), torch.zeros_like(before), torch.zeros_like(before)
    for part, mask, weight, share in reversed(
        list(zip(parts, agrees, weights, rescaled, strict=True))
    ):
        torch.where(mask, part, first, out=first)
        amount += mask * share
        divisor += mask * weight
    if not settings.normalize:
        divisor.fill_(1)
    divisor[divisor == 0] = 1
    rest = torch.zeros_like(before)
    for part, mask, share in zip(parts, agrees, rescaled, strict=True):
        rest += (part - first) * (mask * share)
    scale = amount / divisor * settings.factor
    start = torch.where(scale == 1, first, before + scale * (first - before))
    return start + rest.mul_(settings.factor).div_(divisor)
