"""A given text under every member that takes part, and under the blend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.blending.base import Learner, Together
from cluster.errors import InvalidRequest
from cluster.members.base import Form, Member, ScoreText, SequenceStart, Step, StepToken
from cluster.router.answers import MemberScore, Score
from cluster.router.blends import ServedBlend, blend_weights, form_of, overridden, sampling_params
from cluster.router.checks import check_prompt_is_shared, check_prompt_renders, check_same_member
from cluster.router.gated_scores import weights_along
from cluster.router.on_each import Answer, on_each
from cluster.router.plan import Plan, scoring_plan
from cluster.router.requests import ScoreRequest
from cluster.router.scoring import blend_logprob, evidence_of, has_closed_form, mixture_scores
from cluster.router.seats import Seats
from cluster.router.together import combined_next, logprobs_along
from cluster.router.transcript import Transcript
from cluster.spec import LimitsSpec, RouteSpec, SamplingSpec, UncertaintyGate


async def measure(
    request: ScoreRequest,
    blend: ServedBlend,
    members: Mapping[str, Member],
    limits: LimitsSpec,
    decided: Mapping[str, float] | None = None,
) -> Score:
    """Score a continuation under every member that takes part, and under the blend.

    `decided`: the weights of a gate that has read the prompt.
    """
    spec = overridden(blend, request.overrides)
    if decided is not None:
        request = replace(request, overrides=replace(request.overrides, weights=decided))
    weights = {n: w for n, w in blend_weights(spec, request.overrides).items() if w > 0}
    if isinstance(spec, RouteSpec) and isinstance(spec.gate, UncertaintyGate):
        weights.setdefault(spec.gate.first, 0.0)  # it speaks, whatever its weight
    infos = [blend.infos[name] for name in weights]
    check_prompt_renders(request.prompt, infos)
    sampling = sampling_params(request.sampling, SamplingSpec())
    evidence = evidence_of(spec, list(weights.values()))
    reads_prompt = evidence is not None and evidence.reads_prompt
    start = SequenceStart(
        prompt=request.prompt,
        form=Form.TOKEN_IDS,
        sampling=sampling,
        seed=0,
        prefill=False,
        max_prompt_tokens=limits.max_prompt_tokens,
        score_prompt=reads_prompt,
    )
    want = Step(0, ScoreText(request.continuation, score_news=evidence is not None))
    taking_part = {name: members[name] for name in weights}
    told = await on_each(taking_part, start, want, limits.lease_timeout_s)
    for name in weights:
        check_same_member(blend.infos[name], told[name].info)
    scores = tuple(_score_of(name, weight, told[name]) for name, weight in weights.items())
    shares = list(weights.values())
    if evidence is not None and reads_prompt:
        digests = {name: told[name].prompt_digest for name in weights}
        check_prompt_is_shared(digests, request.prompt)
        num_tokens = len(scores[0].tokens)
        evidence.read_prompt([told[name].news_logprobs[:-num_tokens] for name in weights])
        shares = evidence.weights()
    one_vocabulary = form_of(infos) is Form.TOKEN_IDS
    span = request.overrides.span or spec.span_for(one_vocabulary=one_vocabulary)
    mixture: tuple[StepToken, ...] = ()
    is_pinned = request.overrides.member is not None
    if spec.draws_together and not (has_closed_form(spec) or is_pinned):
        plan = scoring_plan(request, blend, spec, sampling)
        tokens = scores[0].tokens
        if plan.form is Form.BYTES:
            spelled = request.continuation.encode()
            tokens = tuple(StepToken(byte, plan.tokens.bytes[byte], 0.0) for byte in spelled)
        mixture = await _together(plan, tokens, members, limits.lease_timeout_s)
    elif isinstance(spec, RouteSpec) and not (spec.decides_once or is_pinned) and one_vocabulary:
        if span in ("token", 1, "response"):
            plan = scoring_plan(request, blend, spec, sampling)
            by_token = await weights_along(plan, scores[0].tokens, members, limits.lease_timeout_s)
            by_name = [dict(zip(spec.members, w, strict=True)) for w in by_token]
            gated = [[w[name] for name in weights] for w in by_name]
            shares = gated[0]
            if span != "response":
                mixture = mixture_scores(scores, gated=gated)
    elif has_closed_form(spec) and one_vocabulary and span in ("token", 1):
        mixture = mixture_scores(scores, evidence)
    return Score(
        blend=blend.name,
        revision=blend.revision,
        members=scores,
        mixture=mixture,
        logprob=blend_logprob(scores, spec, span, mixture, shares),
        num_bytes=len(request.continuation.encode()),
    )


def _score_of(name: str, weight: float, told: Answer) -> MemberScore:
    own = told.news_logprobs[-len(told.tokens) :]
    return MemberScore(name, weight, tuple(told.tokens), own)


async def _together(
    plan: Plan,
    tokens: Sequence[StepToken],
    members: Mapping[str, Member],
    lease_timeout_s: float,
) -> tuple[StepToken, ...]:
    """Each token, or byte, as likely as all members together make it."""
    assert isinstance(plan.method, Together)
    speakers = plan.method.speakers
    seats = Seats(plan, members, lease_timeout_s)
    transcript = Transcript(plan.members, plan.form, ())
    try:
        await seats.sit_down(speakers, first=speakers)
        if plan.form is Form.BYTES:
            found = await _by_bytes(plan.method, seats, transcript, tokens)
        else:
            found = await logprobs_along(plan, seats, transcript, tokens)
        scored = zip(tokens, found, strict=True)
        return tuple(replace(token, logprob=logprob) for token, logprob in scored)
    finally:
        await seats.leave()


async def _by_bytes(
    method: Together, seats: Seats, transcript: Transcript, symbols: Sequence[StepToken]
) -> list[float]:
    """One byte after another: how it may be split into tokens depends on all before."""
    found = []
    for symbol in symbols:
        combined = await combined_next(method, seats, transcript)
        if combined is None:  # the whole text fitted, in canonical tokens
            raise InvalidRequest(
                "CONTINUATION_TOO_LONG",
                "got a text that fills a member's context when it is read byte by byte; "
                "expected a shorter one",
                field="continuation",
            )
        found.append(combined.logprob_of(symbol.id))
        if isinstance(method.rule, Learner):
            method.rule.learn(combined.told, symbol.id)
        transcript.commit(0, [symbol])
    return found
