"""What is left of a method when one of its members is gone: the same rule over the others' weights.

What was said stays; from the next token on, the law is that of the blend without the member.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cluster.blending.adaptive import AdaptiveMean, AdaptiveMixture
from cluster.blending.base import Method, Rule, Together
from cluster.blending.combined import Mean, Product
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Cascade, Routed


def without(method: Method | Together, member: int) -> Method | Together | None:
    """The method without a member, by its index in the blend; None when nobody is left to speak.

    Proxy and contrast give every member a role that no other can take: these end as well.
    """
    match method:
        case Mixture():
            return _mixture(method, _zeroed(method.weights, member))
        case AdaptiveMixture():
            mixture = _mixture(method.mixture, _zeroed(method.mixture.weights, member))
            if mixture is None:
                return None
            method.evidence.leave_out(member)
            return AdaptiveMixture(mixture, method.evidence)
        case Cascade():
            return _cascade(method, member)
        case Routed():
            mixture = _mixture(method.mixture, _zeroed(method.mixture.weights, member))
            if mixture is None or member == method.reader:
                return mixture  # nobody reads any more: the weights of the file hold
            choice = replace(method.choice, prior=_zeroed(method.choice.prior, member))
            return Routed(mixture, method.network, choice, method.reader)
        case Together(speakers, rule):
            if member not in speakers:
                return method
            left = tuple(index for index in speakers if index != member)
            rest = _rule(rule, speakers.index(member)) if left else None
            return None if rest is None else Together(left, rest)
    raise AssertionError(f"a method that cannot lose members: {method}")


def _cascade(method: Cascade, member: int) -> Method | None:
    weights = _zeroed(method.weights, member)
    if member != method.first and any(weights):
        return replace(method, weights=weights)
    if member != method.first:  # the first has nobody to hand over to
        weights = [float(index == method.first) for index in range(len(weights))]
    return _mixture(Mixture(method.weights, method.span, method.seed), weights)


def _rule(rule: Rule, place: int) -> Rule | None:
    match rule:
        case Mean() | Product():
            weights = [w for at, w in enumerate(rule.weights) if at != place]
            return replace(rule, weights=[w / math.fsum(weights) for w in weights])
        case AdaptiveMean():
            rule.evidence.remove(place)
            return rule
    return None


def _mixture(mixture: Mixture, weights: Sequence[float]) -> Mixture | None:
    return replace(mixture, weights=tuple(weights)) if any(weights) else None


def _zeroed(weights: Sequence[float], member: int) -> list[float]:
    return [0.0 if index == member else weight for index, weight in enumerate(weights)]
