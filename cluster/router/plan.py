"""From a request and a blend to everything that is fixed for one reply. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.blending.base import Method, Span
from cluster.blending.mixture import Mixture
from cluster.engine.types import SamplingParams
from cluster.errors import InvalidRequest, Unsupported
from cluster.members.base import NEVER_ENDS, Form, MemberInfo, Prompt, SequenceStart
from cluster.router.requests import GenerationRequest, Overrides, Sampling
from cluster.spec import BlendSpec, LimitsSpec, SamplingSpec


@dataclass(frozen=True)
class ServedBlend:
    """A blend with what its members' replicas tell about themselves."""

    name: str
    spec: BlendSpec
    revision: str
    infos: Mapping[str, MemberInfo]

    @property
    def form(self) -> Form:
        """How all its members together exchange what was said."""
        return form_of(list(self.infos.values()))

    @property
    def span(self) -> Span:
        """The span of requests that do not override it."""
        return self.spec.span_for(one_vocabulary=self.form is Form.TOKEN_IDS)


@dataclass(frozen=True)
class Plan:
    """One reply, decided."""

    blend: ServedBlend
    members: tuple[str, ...]  # all of the blend, in its order
    method: Method
    form: Form
    sampling: SamplingParams
    seed: int
    prompt: Prompt
    max_tokens: int
    end_allowed_from: int
    num_top: int
    max_prompt_tokens: int
    stop: tuple[str, ...]

    def start(self, info: MemberInfo, *, prefill: bool) -> SequenceStart:
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
        )


def make_plan(
    request: GenerationRequest, blend: ServedBlend, limits: LimitsSpec, fresh_seed: int
) -> Plan:
    """Decide a reply; raises InvalidRequest or Unsupported with the field to blame."""
    request.overrides.check_names(blend.spec.members, blend.name)
    weights = blend_weights(request.overrides, blend)
    speaking = [name for name, weight in weights.items() if weight > 0]
    check_prompt_renders(request.prompt, [blend.infos[name] for name in speaking])
    seed = fresh_seed if request.sampling.seed is None else request.sampling.seed
    span = request.overrides.span
    if span is None:
        one_vocabulary = form_of([blend.infos[name] for name in speaking]) is Form.TOKEN_IDS
        span = blend.spec.span_for(one_vocabulary=one_vocabulary)
    method = Mixture(tuple(weights.values()), span, seed)
    members = tuple(weights)
    stopping = request.stopping
    max_tokens = limits.max_new_tokens if stopping.max_tokens is None else stopping.max_tokens
    for field, given in (("max_tokens", max_tokens), ("min_tokens", stopping.min_tokens)):
        if given > limits.max_new_tokens:
            raise InvalidRequest(
                "INVALID_VALUE",
                f"got {given}; expected at most {limits.max_new_tokens}, this server's limit",
                field=f"stopping.{field}",
            )
    return Plan(
        blend=blend,
        members=members,
        method=method,
        form=form_of([blend.infos[members[index]] for index in method.speakers]),
        sampling=sampling_params(request.sampling, blend.spec.sampling),
        seed=seed,
        prompt=request.prompt,
        max_tokens=max_tokens,
        end_allowed_from=NEVER_ENDS if stopping.ignore_eos else stopping.min_tokens,
        num_top=request.output.num_top_candidates,
        max_prompt_tokens=limits.max_prompt_tokens,
        stop=stopping.stop,
    )


def blend_weights(overrides: Overrides, blend: ServedBlend) -> dict[str, float]:
    """Every member's share of this request, in the blend's order, summing to 1."""
    given: Mapping[str, float] = blend.spec.weights
    if overrides.member is not None:
        given = {overrides.member: 1.0}
    elif overrides.weights is not None:
        given = overrides.weights
    total = math.fsum(given.values())
    return {name: given.get(name, 0.0) / total for name in blend.spec.members}


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
