"""What is known of a blend, and what a request makes of it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.blending.base import Span
from cluster.blending.speculation import Drafting
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest
from cluster.gates.file import GateFile
from cluster.members.base import Form, MemberInfo, Tokens
from cluster.router.requests import Overrides, Sampling
from cluster.spec import (
    BlendSpec,
    MixtureSpec,
    RouteSpec,
    SamplingSpec,
)


@dataclass(frozen=True)
class ServedBlend:
    """A blend with what its members' replicas tell about themselves."""

    name: str
    spec: BlendSpec
    revision: str
    infos: Mapping[str, MemberInfo]
    tokens: Mapping[str, Tokens] = field(default_factory=dict)  # where the rule needs them
    gate: GateFile | None = None  # where one was learned
    drafting: Drafting = field(default_factory=Drafting, compare=False)  # measured as replies go

    @property
    def form(self) -> Form:
        """How all its members together exchange what was said."""
        return Form.BYTES if self.spec.by_bytes else form_of(list(self.infos.values()))

    @property
    def span(self) -> Span:
        """The span of requests that do not override it."""
        return self.spec.span_for(one_vocabulary=self.form is Form.TOKEN_IDS)


def overridden(blend: ServedBlend, overrides: Overrides) -> BlendSpec:
    """The blend's spec with the request's parameters; refuses overrides that its method lacks."""
    spec = blend.spec
    overrides.check_names(spec.members, blend.name)
    for path, given, has in (
        ("weights", overrides.weights, bool(spec.weights)),
        ("span", overrides.span, isinstance(spec, MixtureSpec | RouteSpec)),
    ):
        if given is not None and not has:
            raise InvalidRequest(
                "INVALID_OVERRIDE",
                f"got {path}; expected none: blend {blend.name!r} has method {spec.method}, "
                f"which has no {path}",
                field=f"overrides.{path}",
            )
    return spec.with_parameters(overrides.parameters)


def blend_weights(spec: BlendSpec, overrides: Overrides) -> dict[str, float]:
    """Every member's share of this request, in the blend's order, summing to 1.

    Members with roles have equal ones, unless one of them is pinned.
    """
    given: Mapping[str, float] = spec.weights or dict.fromkeys(spec.members, 1.0)
    if overrides.member is not None:
        given = {overrides.member: 1.0}
    elif overrides.weights is not None:
        given = overrides.weights
    total = math.fsum(given.values())
    return {name: given.get(name, 0.0) / total for name in spec.members}


def form_of(infos: list[MemberInfo]) -> Form:
    """Members of one vocabulary exchange token ids, others text."""
    return Form.TOKEN_IDS if len({info.vocabulary for info in infos}) == 1 else Form.TEXT


def sampling_params(given: Sampling, default: SamplingSpec) -> SamplingParams:
    """The request's sampling, the blend's where it does not say."""
    return SamplingParams(
        temperature=default.temperature if given.temperature is None else given.temperature,
        top_k=default.top_k if given.top_k is None else given.top_k,
        top_p=default.top_p if given.top_p is None else given.top_p,
        min_p=default.min_p if given.min_p is None else given.min_p,
    )
