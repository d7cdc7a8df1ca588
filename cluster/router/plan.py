"""From a request and a blend to everything that is fixed for one reply. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.blending.adaptive import AdaptiveMean, AdaptiveMixture, Evidence
from cluster.blending.base import Method, Together
from cluster.blending.mixture import Mixture
from cluster.blending.routing import Routed
from cluster.blending.speculation import Speculation
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest
from cluster.members.base import NEVER_ENDS, Form, MemberInfo, Prompt, SequenceStart, Tokens
from cluster.router.blends import ServedBlend, blend_weights, form_of, overridden, sampling_params
from cluster.router.checks import check_format_holds, check_prompt_renders
from cluster.router.conversation import conversation_key
from cluster.router.methods import make_method
from cluster.router.notices import Notice
from cluster.router.requests import GenerationRequest, Overrides, ScoreRequest
from cluster.router.resumption import Recalled, losses_of, recalled
from cluster.spec import (
    BlendSpec,
    CombinedSpec,
    LimitsSpec,
)
from cluster.text.bytewise import END
from cluster.text.grammar import OutputFormat

_BYTES = Tokens((*(bytes([byte]) for byte in range(END)), b""), frozenset({END}))


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
    affinity: str = ""  # by what turns of one conversation find the same replicas
    received: tuple[Recalled, ...] = ()  # what the caller has of it
    losses: tuple[Notice, ...] = ()  # members that were gone meanwhile
    speculation: Speculation | None = None  # who drafts, if somebody may

    @property
    def seated(self) -> tuple[int, ...]:
        """Members that take part: all who may speak, and who drafts for them."""
        drafter = () if self.speculation is None else (self.speculation.draft,)
        return tuple(sorted({*self.method.speakers, *drafter}))

    def left_with(self, method: Method | Together, gone: int) -> Plan:
        """The rest of the reply without a member; if that has drafted, nobody does."""
        speculation = self.speculation
        if speculation is not None and speculation.draft == gone:
            speculation = None
        return replace(self, method=method, speculation=speculation)

    @property
    def evidence(self) -> Evidence | None:
        """What its weights follow, if they follow something."""
        rule = self.method.rule if isinstance(self.method, Together) else self.method
        return rule.evidence if isinstance(rule, AdaptiveMixture | AdaptiveMean) else None

    @property
    def weights(self) -> dict[str, float]:
        """The members' weights now, where they follow the transcript or a gate."""
        method, names, evidence = self.method, self.members, self.evidence
        if self.decided:
            return dict(self.decided)
        if isinstance(method, Routed):
            found = method.weights()
            return dict(zip(names, found, strict=True)) if found else {}
        if evidence is None:
            return {}
        if isinstance(method, Together):
            names = tuple(names[index] for index in method.speakers)
        return dict(zip(names, evidence.weights(), strict=True))

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
    speculation = _speculation_of(spec, method)
    infos = [blend.infos[members[index]] for index in method.speakers]
    may_speak = _may_speak(spec, request.overrides, blend)
    if speculation is not None:
        may_speak.append(blend.infos[members[speculation.draft]])
    check_prompt_renders(request.prompt, [*may_speak, *infos])
    if request.format is not None:
        check_format_holds(method, infos, by_bytes=by_bytes)
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
        affinity=conversation_key(request.prompt, request.conversation_id),
        received=recalled(request.resumption, members),
        losses=losses_of(request.resumption, members),
        speculation=speculation,
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


def _speculation_of(spec: BlendSpec, method: Method | Together) -> Speculation | None:
    """Who drafts; nobody where the request left no more than one member, or another span."""
    given = spec.speculation
    if given is None or (isinstance(method, Mixture) and method.span != "token"):
        return None
    drafter = list(spec.members).index(given.draft)
    speaks_in_vain = isinstance(method, Together) and drafter not in method.speakers
    if method.speakers == (drafter,) or speaks_in_vain:
        return None
    return Speculation(drafter, given.max_tokens, given.always)


def _min_share_of(spec: BlendSpec) -> float:
    return spec.min_share if isinstance(spec, CombinedSpec) else 0.0


def _may_speak(spec: BlendSpec, overrides: Overrides, blend: ServedBlend) -> list[MemberInfo]:
    """All members that this request's draws might pick, the one drawn or not."""
    weights = blend_weights(spec, overrides)
    return [blend.infos[name] for name, weight in weights.items() if weight > 0]
