"""From a blend and a request to the rule of one reply. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.blending.adaptive import Adaptation, AdaptiveMean, AdaptiveMixture, Evidence
from cluster.blending.base import Method, Together
from cluster.blending.combined import Contrast, Mean, Product, Proxy
from cluster.blending.gates import Choice
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Cascade, Routed
from cluster.blending.warping import Warp
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest
from cluster.members.base import Form
from cluster.router.blends import ServedBlend, blend_weights, form_of
from cluster.router.requests import Overrides
from cluster.spec import (
    AdaptSpec,
    BlendSpec,
    ChooseSpec,
    ContrastSpec,
    EnsembleSpec,
    FuseSpec,
    LearnedGate,
    MixtureSpec,
    ProxySpec,
    RouteSpec,
    UncertaintyGate,
)

_CANDIDATES = 64  # ids that an expert tells at first; it is asked for more where that is too few


def make_method(
    spec: BlendSpec,
    overrides: Overrides,
    blend: ServedBlend,
    sampling: SamplingParams,
    seed: int,
) -> Method | Together:
    """The blend's rule, set up for one reply; a pinned member speaks alone whatever the rule."""
    weights = blend_weights(spec, overrides)
    names = list(spec.members)
    warp = Warp(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    infos = [blend.infos[name] for name, weight in weights.items() if weight > 0]
    span = overrides.span or spec.span_for(one_vocabulary=form_of(infos) is Form.TOKEN_IDS)
    mixture = Mixture(tuple(weights.values()), span, seed)
    match spec:
        case MixtureSpec():
            if spec.adapt is None:
                return mixture
            evidence = evidence_for(mixture.weights, spec.adapt)
            if evidence.reads_prompt or len(mixture.speakers) > 1:
                return AdaptiveMixture(mixture, evidence)
            return mixture
        case _ if overrides.member is not None:
            return Mixture(tuple(weights.values()), "response", seed)
        case EnsembleSpec():
            speakers = tuple(i for i, name in enumerate(names) if weights[name] > 0)
            make = Mean if spec.rule == "mean" else Product
            shares = [weights[names[i]] for i in speakers]
            if spec.adapt is not None:
                return Together(speakers, AdaptiveMean(evidence_for(shares, spec.adapt), warp))
            return Together(speakers, make(shares, 0 if spec.exact else spec.candidates, warp))
        case ProxySpec():
            base, expert, anti = (_index_of(spec, r) for r in ("base", "expert", "anti"))
            return Together((0, 1, 2), Proxy(base, expert, anti, spec.alpha, warp))
        case ContrastSpec():
            expert, amateur = _index_of(spec, "expert"), _index_of(spec, "amateur")
            rule = Contrast(expert, amateur, spec.beta, spec.plausibility, _CANDIDATES, warp)
            return Together((0, 1), rule)
        case RouteSpec():
            return _routed(spec, mixture, blend)
        case ChooseSpec() | FuseSpec():
            raise AssertionError("whole replies come from pinned members")


def _routed(spec: RouteSpec, mixture: Mixture, blend: ServedBlend) -> Method:
    """A gate that is asked as the reply goes; others have weighed the mixture before."""
    names = list(spec.members)
    match spec.gate:
        case UncertaintyGate(by=measure, first=first):
            others = [0.0 if n == first else w for n, w in zip(names, mixture.weights, strict=True)]
            if not any(others):
                raise InvalidRequest(
                    "INVALID_WEIGHTS",
                    f"got no weight but {first}'s; expected another member to hand over to",
                    field="overrides.weights",
                )
            assert spec.threshold is not None, "the spec wants one here"
            place = names.index(first)
            return Cascade(others, place, mixture.span, mixture.seed, measure, spec.threshold)
        case LearnedGate(reader=str(reader)):
            assert blend.gate is not None, "a served blend has its gate"
            choice = choice_of(spec, dict(zip(names, mixture.weights, strict=True)))
            return Routed(mixture, blend.gate.network, choice, names.index(reader))
    return mixture


def choice_of(spec: RouteSpec, prior: Mapping[str, float]) -> Choice:
    """How a gate's logits become weights."""
    costs = [spec.costs.get(name, 0.0) for name in spec.members]
    return Choice([prior[name] for name in spec.members], spec.top, costs, spec.price)


def evidence_for(prior: Sequence[float], adapt: AdaptSpec) -> Evidence:
    """What weights that adapt so follow, before anything is known."""
    return Evidence(prior, Adaptation(**adapt.model_dump()))


def _index_of(spec: BlendSpec, role: str) -> int:
    return list(spec.roles.values()).index(role)
