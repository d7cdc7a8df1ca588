"""From a request and a blend to everything that is fixed for one reply. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.blending.adaptive import Adaptation, AdaptiveMean, AdaptiveMixture, Evidence
from cluster.blending.base import Method, Span, Together
from cluster.blending.combined import Contrast, Mean, Product, Proxy
from cluster.blending.gates import Choice
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Cascade, Routed
from cluster.blending.warping import Warp
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest, Unavailable, Unsupported
from cluster.gates.file import GateFile
from cluster.members.base import NEVER_ENDS, Form, MemberInfo, Prompt, SequenceStart, Tokens
from cluster.router.requests import GenerationRequest, Overrides, Sampling, ScoreRequest
from cluster.spec import (
    AdaptSpec,
    BlendSpec,
    ChooseSpec,
    CombinedSpec,
    ContrastSpec,
    EnsembleSpec,
    FuseSpec,
    LearnedGate,
    LimitsSpec,
    MixtureSpec,
    ProxySpec,
    RouteSpec,
    SamplingSpec,
    UncertaintyGate,
)
from cluster.text.bytewise import END
from cluster.text.grammar import OutputFormat

_BYTES = Tokens((*(bytes([byte]) for byte in range(END)), b""), frozenset({END}))
_CANDIDATES = 64  # ids that an expert tells at first; it is asked for more where that is too few


@dataclass(frozen=True)
class ServedBlend:
    """A blend with what its members' replicas tell about themselves."""

    name: str
    spec: BlendSpec
    revision: str
    infos: Mapping[str, MemberInfo]
    tokens: Mapping[str, Tokens] = field(default_factory=dict)  # where the rule needs them
    gate: GateFile | None = None  # where one was learned

    @property
    def form(self) -> Form:
        """How all its members together exchange what was said."""
        return Form.BYTES if self.spec.by_bytes else form_of(list(self.infos.values()))

    @property
    def span(self) -> Span:
        """The span of requests that do not override it."""
        return self.spec.span_for(one_vocabulary=self.form is Form.TOKEN_IDS)


@dataclass(frozen=True)
class Plan:
    """One reply, decided."""

    blend: ServedBlend
    members: tuple[str, ...]  # all of the blend, in its order
    method: Method | Together
    form: Form
    sampling: SamplingParams
    seed: int
    prompt: Prompt
    max_tokens: int  # bytes for Form.BYTES, as positions are
    end_allowed_from: int
    num_top: int
    max_prompt_tokens: int
    stop: tuple[str, ...]
    tokens: Tokens  # what ids stand for and which end a turn, where members draw together
    min_share: float = 0.0  # for Form.BYTES
    decided: Mapping[str, float] = field(default_factory=dict)  # weights that a gate found before
    format: OutputFormat | None = None  # what the whole reply has to match

    @property
    def evidence(self) -> Evidence | None:
        """What its weights follow, if they follow something."""
        rule = self.method.rule if isinstance(self.method, Together) else self.method
        return rule.evidence if isinstance(rule, AdaptiveMixture | AdaptiveMean) else None

    def start(
        self, info: MemberInfo, *, prefill: bool, score_prompt: bool = False
    ) -> SequenceStart:
        """How a member's sequence begins."""
        return SequenceStart(
            prompt=self.prompt,
            form=self.form,
            sampling=self.sampling,
            seed=self.seed,
            end_allowed_from=self.end_allowed_from,
            num_top=self.num_top,
            prefill=prefill,
            max_prompt_tokens=min(self.max_prompt_tokens, info.max_context - 1),
            format=self.format,
            score_prompt=score_prompt,
            min_share=self.min_share,
        )


def make_plan(
    request: GenerationRequest,
    blend: ServedBlend,
    limits: LimitsSpec,
    fresh_seed: int,
    decided: Mapping[str, float] | None = None,
) -> Plan:
    """Decide a reply; raises InvalidRequest or Unsupported with the field to blame.

    `decided`: the weights of a gate that has read the prompt.
    """
    spec = overridden(blend, request.overrides)
    if decided is not None:
        request = replace(request, overrides=replace(request.overrides, weights=decided))
    sampling = sampling_params(request.sampling, spec.sampling)
    seed = fresh_seed if request.sampling.seed is None else request.sampling.seed
    method = make_method(spec, request.overrides, blend, sampling, seed)
    members = tuple(spec.members)
    by_bytes = spec.by_bytes and isinstance(method, Together)
    infos = [blend.infos[members[index]] for index in method.speakers]
    check_prompt_renders(request.prompt, _may_speak(spec, request.overrides, blend))
    if request.format is not None:
        _check_format_holds(method, infos, by_bytes=by_bytes)
    stopping = request.stopping
    max_tokens = limits.max_new_tokens if stopping.max_tokens is None else stopping.max_tokens
    for name, given in (("max_tokens", max_tokens), ("min_tokens", stopping.min_tokens)):
        if given > limits.max_new_tokens:
            raise InvalidRequest(
                "INVALID_VALUE",
                f"got {given}; expected at most {limits.max_new_tokens}, this server's limit",
                field=f"stopping.{name}",
            )
    return Plan(
        blend=blend,
        members=members,
        method=method,
        form=Form.BYTES if by_bytes else form_of(infos),
        sampling=sampling,
        seed=seed,
        prompt=request.prompt,
        max_tokens=max_tokens,
        end_allowed_from=NEVER_ENDS if stopping.ignore_eos else stopping.min_tokens,
        num_top=request.output.num_top_candidates,
        max_prompt_tokens=limits.max_prompt_tokens,
        stop=stopping.stop,
        tokens=_tokens_of(blend, by_bytes=by_bytes),
        min_share=_min_share_of(spec),
        decided=decided or {},
        format=request.format,
    )


def scoring_plan(
    request: ScoreRequest, blend: ServedBlend, spec: BlendSpec, sampling: SamplingParams
) -> Plan:
    """How to follow a given text with all members at once."""
    members = tuple(spec.members)
    return Plan(
        blend=blend,
        members=members,
        method=make_method(spec, request.overrides, blend, sampling, seed=0),
        form=Form.BYTES if spec.by_bytes else Form.TOKEN_IDS,
        sampling=sampling,
        seed=0,
        prompt=request.prompt,
        max_tokens=0,
        end_allowed_from=0,
        num_top=0,
        max_prompt_tokens=NEVER_ENDS,
        stop=(),
        tokens=_tokens_of(blend, by_bytes=spec.by_bytes),
        min_share=_min_share_of(spec),
    )


def _tokens_of(blend: ServedBlend, *, by_bytes: bool) -> Tokens:
    """Of members with one vocabulary: what ends a turn for one of them does so for all."""
    of_members = [blend.tokens[name] for name in blend.spec.members if name in blend.tokens]
    if by_bytes:
        return _BYTES
    if not of_members:
        return Tokens((), frozenset())
    return Tokens(
        of_members[0].bytes, frozenset().union(*(tokens.end_ids for tokens in of_members))
    )


def _min_share_of(spec: BlendSpec) -> float:
    return spec.min_share if isinstance(spec, CombinedSpec) else 0.0


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


def _may_speak(spec: BlendSpec, overrides: Overrides, blend: ServedBlend) -> list[MemberInfo]:
    """All members that this request's draws might pick, the one drawn or not."""
    weights = blend_weights(spec, overrides)
    return [blend.infos[name] for name, weight in weights.items() if weight > 0]


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


def _check_format_holds(
    method: Method | Together, infos: list[MemberInfo], *, by_bytes: bool
) -> None:
    """Refuse a format that the members cannot keep to alike."""
    if by_bytes:
        raise Unsupported(
            "FORMAT_NEEDS_TOKENS",
            "got a format for a blend by bytes; expected one by tokens, or one member pinned with "
            "overrides.member",
            field="format",
        )
    if form_of(infos) is Form.TEXT:
        names = ", ".join(info.member for info in infos)
        raise Unsupported(
            "FORMAT_NEEDS_ONE_VOCABULARY",
            f"got a format for {names}, whose vocabularies differ; expected members of one "
            "vocabulary, or one member pinned with overrides.member",
            field="format",
        )
    if isinstance(method, Together) and isinstance(method.rule, AdaptiveMean):
        raise Unsupported(
            "FORMAT_HIDES_EVIDENCE",
            "got a format for a mean with adapt; expected a mixture with adapt, or a mean without: "
            "its weights follow the models' own likelihoods, which a format masks",
            field="format",
        )


def check_prompt_is_shared(digests: Mapping[str, int], prompt: Prompt) -> None:
    """Refuse to weigh members by a prompt that is not the same tokens for all of them.

    Likelihoods compare members only as far as they are of one text. Of two chat templates, one is
    merely longer or more usual than the other, which says nothing about what the user wrote.
    """
    if len(set(digests.values())) > 1:
        raise Unsupported(
            "PROMPTS_DIFFER",
            f"members {', '.join(digests)} read different tokens where this prompt is, so their "
            "likelihoods of it do not compare; expected members that render prompts alike, or a "
            "blend with adapt.evidence: reply",
            field="prompt" if prompt.messages is None else "chat",
        )


def check_same_member(known: MemberInfo, leased: MemberInfo) -> None:
    """Refuse a replica whose token ids mean something else than those of the plan."""
    if leased.vocabulary != known.vocabulary:
        raise Unavailable(
            "MEMBER_CHANGED", f"member {known.member!r} has become {leased.model}; try again"
        )


def check_prompt_renders(prompt: Prompt, infos: list[MemberInfo]) -> None:
    """Refuse a chat that a member has no template for, before anything is leased."""
    if prompt.messages is None:
        return
    for info in infos:
        if not info.has_chat_template:
            raise Unsupported(
                "NO_CHAT_TEMPLATE",
                f"member {info.member!r} has no chat template; send a prompt instead",
                field="chat",
            )
