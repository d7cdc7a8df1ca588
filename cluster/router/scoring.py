"""The likelihood of a given text under a blend, from its likelihood under each member. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cluster.blending.adaptive import Evidence
from cluster.blending.base import Span
from cluster.members.base import StepToken
from cluster.router.answers import MemberScore
from cluster.router.methods import evidence_for
from cluster.spec import BlendSpec, EnsembleSpec, MixtureSpec, RouteSpec


def has_closed_form(spec: BlendSpec) -> bool:
    """Whether the members' likelihoods decide the blend's."""
    is_mean = isinstance(spec, EnsembleSpec) and spec.rule == "mean" and not spec.by_bytes
    is_gated = isinstance(spec, RouteSpec) and spec.decides_once  # then it is a mixture
    return is_mean or is_gated or isinstance(spec, MixtureSpec)


def evidence_of(spec: BlendSpec, weights: Sequence[float]) -> Evidence | None:
    """What the blend's weights follow, if they follow something."""
    adapt = spec.adapt if isinstance(spec, MixtureSpec | EnsembleSpec) else None
    return None if adapt is None else evidence_for(weights, adapt)


def mixture_scores(
    members: tuple[MemberScore, ...],
    evidence: Evidence | None = None,
    gated: Sequence[Sequence[float]] = (),
) -> tuple[StepToken, ...]:
    """log Σ λᵢ pᵢ per token, for members with the same tokens.

    Where weights adapt, those of each token follow all tokens before it. `gated`: a gate's weights
    of each token.
    """
    weights: Sequence[float] = [member.weight for member in members]
    found = []
    for position, token in enumerate(members[0].tokens):
        logprobs = [member.tokens[position].logprob for member in members]
        if gated:
            weights = gated[position]
        if evidence is not None:
            weights = evidence.weights()
            for index, member in enumerate(members):
                evidence.note(index, position, [member.own_logprobs[position]])
        parts = [math.log(w) + p for w, p in zip(weights, logprobs, strict=True) if w]
        found.append(replace(token, logprob=_log_sum_exp(parts)))
    return tuple(found)


def blend_logprob(
    members: tuple[MemberScore, ...],
    spec: BlendSpec,
    span: Span,
    mixture: tuple[StepToken, ...],
    weights: Sequence[float],
) -> float | None:
    """The blend's log-likelihood where its law over a text has a closed form.

    Span token: Σ log Σ λᵢ pᵢ. Span response: log Σ λᵢ Π pᵢ. One member: its own. Members that
    draw together: what they make of each token, or of each byte.
    """
    if mixture:
        return math.fsum(token.logprob for token in mixture)
    if len(members) == 1:
        return members[0].logprob
    if isinstance(spec, MixtureSpec | RouteSpec) and span == "response":
        parts = zip(members, weights, strict=True)
        return _log_sum_exp([math.log(weight) + m.logprob for m, weight in parts if weight])
    return None


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
