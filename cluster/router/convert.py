"""Protobuf at the border of the edge: public messages in, dataclasses out, and back."""

from __future__ import annotations

from cluster.blending.base import Span
from cluster.errors import InvalidRequest
from cluster.members.base import Form, Prompt
from cluster.members.wire import chat_from_proto, format_from_proto
from cluster.router.blends import ServedBlend
from cluster.router.notices import Notice, NoticeKind
from cluster.router.requests import (
    FinishReason,
    GenerationRequest,
    Law,
    MemberUsage,
    Outcome,
    Output,
    Overrides,
    Proposal,
    ProposalState,
    ReplyToken,
    Sampling,
    Score,
    ScoreRequest,
    Stopping,
    Update,
)
from cluster.router.resumption import ReceivedToken, Resumption
from cuvee.v1 import blend_pb2 as pb_blend
from cuvee.v1 import generation_pb2 as pb

_FINISHES = {
    FinishReason.END_OF_TURN: pb.FINISH_REASON_END_OF_TURN,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.MAX_TOKENS: pb.FINISH_REASON_MAX_TOKENS,
    FinishReason.CONTEXT_FULL: pb.FINISH_REASON_CONTEXT_FULL,
}
_NOTICES = {NoticeKind.MEMBER_GONE: pb.NOTICE_KIND_MEMBER_GONE}
_STATES = {
    ProposalState.COMPLETE: pb.PROPOSAL_STATE_COMPLETE,
    ProposalState.LATE: pb.PROPOSAL_STATE_LATE,
    ProposalState.FAILED: pb.PROPOSAL_STATE_FAILED,
}
_LAWS = {
    Law.EXACT: pb.LAW_EXACT,
    Law.BOUNDED: pb.LAW_BOUNDED,
    Law.APPROXIMATE: pb.LAW_APPROXIMATE,
}
_SPAN_UNITS: dict[pb.SpanUnit.ValueType, Span] = {
    pb.SPAN_UNIT_WORD: "word",
    pb.SPAN_UNIT_SENTENCE: "sentence",
    pb.SPAN_UNIT_RESPONSE: "response",
}
_SPAN_UNITS_BACK = {span: unit for unit, span in _SPAN_UNITS.items()}
_FORMS = {
    Form.TOKEN_IDS: pb_blend.EXCHANGE_KIND_TOKEN_IDS,
    Form.TEXT: pb_blend.EXCHANGE_KIND_TEXT,
    Form.BYTES: pb_blend.EXCHANGE_KIND_BYTES,
}


def generation_from_proto(
    message: pb.GenerateRequest | pb.StreamGenerateRequest,
) -> GenerationRequest:
    """A request for a reply; raises InvalidRequest."""
    stopping, output = message.stopping, message.output
    return GenerationRequest(
        blend=message.blend,
        prompt=prompt_from_proto(message),
        sampling=sampling_from_proto(message.sampling),
        stopping=Stopping(
            max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
            min_tokens=stopping.min_tokens,
            stop=tuple(stopping.stop),
            ignore_eos=stopping.ignore_eos,
        ),
        output=Output(
            logprobs=output.logprobs,
            num_top_candidates=output.num_top_candidates,
            attribution=output.attribution if output.HasField("attribution") else True,
        ),
        overrides=overrides_from_proto(message.overrides),
        user_id=message.user_id,
        conversation_id=message.conversation_id,
        format=format_from_proto(message.format) if message.HasField("format") else None,
        resumption=_resumption(message.resumption) if message.HasField("resumption") else None,
    )


def _resumption(message: pb.Resumption) -> Resumption:
    tokens = (
        ReceivedToken(t.member, t.id, t.bytes, tuple((w.member, w.share) for w in t.weights))
        for t in message.tokens
    )
    notices = [_notice(notice, number) for number, notice in enumerate(message.notices)]
    return Resumption(tuple(tokens), message.blend_revision, tuple(notices))


def _notice(message: pb.Notice, number: int) -> Notice:
    if message.kind != pb.NOTICE_KIND_MEMBER_GONE:
        words = f"got kind {message.kind}; expected NOTICE_KIND_MEMBER_GONE"
        raise InvalidRequest("INVALID_NOTICE", words, field=f"resumption.notices[{number}].kind")
    return Notice(NoticeKind.MEMBER_GONE, message.member, message.position, message.message)


def score_from_proto(message: pb.ScoreRequest) -> ScoreRequest:
    """A request to measure; raises InvalidRequest."""
    return ScoreRequest(
        blend=message.blend,
        prompt=prompt_from_proto(message),
        continuation=message.continuation,
        sampling=sampling_from_proto(message.sampling),
        overrides=overrides_from_proto(message.overrides),
    )


def prompt_from_proto(
    message: pb.GenerateRequest
    | pb.StreamGenerateRequest
    | pb.ScoreRequest
    | pb.CountTokensRequest,
) -> Prompt:
    """What the reply follows."""
    if message.WhichOneof("input") == "chat":
        return Prompt(messages=chat_from_proto(message.chat))
    return Prompt(text=message.prompt)


def sampling_from_proto(message: pb.Sampling) -> Sampling:
    """How tokens are drawn; absent fields stay None."""
    return Sampling(
        temperature=message.temperature if message.HasField("temperature") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        min_p=message.min_p if message.HasField("min_p") else None,
        seed=message.seed if message.HasField("seed") else None,
    )


def overrides_from_proto(message: pb.BlendOverrides) -> Overrides:
    """Changes to the blend."""
    return Overrides(
        weights=dict(message.weights) or None,
        span=span_from_proto(message.span) if message.HasField("span") else None,
        member=message.member or None,
        parameters=dict(message.parameters),
    )


def span_from_proto(message: pb.Span) -> Span:
    """A span; raises InvalidRequest when none is given."""
    if message.num_tokens:
        return message.num_tokens
    if message.unit in _SPAN_UNITS:
        return _SPAN_UNITS[message.unit]
    raise InvalidRequest(
        "INVALID_VALUE",
        "got no span; expected num_tokens of at least 1, or unit WORD, SENTENCE or RESPONSE",
        field="overrides.span",
    )


def span_to_proto(span: Span) -> pb.Span:
    """A span as a message."""
    if isinstance(span, int) or span == "token":
        return pb.Span(num_tokens=1 if span == "token" else span)
    return pb.Span(unit=_SPAN_UNITS_BACK[span])


def stream_to_proto(update: Update, request_id: str, output: Output) -> pb.StreamGenerateResponse:
    """The next piece of a reply as a message."""
    message = pb.StreamGenerateResponse(request_id=request_id, text_delta=update.text)
    if output.attribution:
        message.tokens.extend(token_to_proto(token, output) for token in update.tokens)
    message.notices.extend(map(notice_to_proto, update.notices))
    if update.start is not None:
        start = update.start
        message.start.CopyFrom(
            pb.Start(seed=start.seed, blend=start.blend, blend_revision=start.revision)
        )
    if update.outcome is not None:
        message.outcome.CopyFrom(outcome_to_proto(update.outcome))
        if output.attribution:
            message.outcome.proposals.extend(map(proposal_to_proto, update.outcome.proposals))
    return message


def notice_to_proto(notice: Notice) -> pb.Notice:
    """What happened to a reply as a message."""
    return pb.Notice(
        kind=_NOTICES[notice.kind],
        member=notice.member,
        position=notice.position,
        message=notice.message,
    )


def token_to_proto(reply_token: ReplyToken, output: Output) -> pb.Token:
    """One token of a reply as a message."""
    token = reply_token.token
    message = pb.Token(
        member=reply_token.member,
        bytes=token.bytes,
        id=token.id,
        position=reply_token.position,
        shares=[pb.MemberShare(member=m, share=share) for m, share in reply_token.shares],
        truncation_bound=reply_token.bound,
        weights=[pb.MemberShare(member=m, share=weight) for m, weight in reply_token.weights],
    )
    if output.logprobs or output.num_top_candidates:
        message.logprob = token.logprob
        message.logprob_kind = (
            pb.LOGPROB_KIND_MIXTURE if reply_token.shares else pb.LOGPROB_KIND_SAMPLED_MEMBER
        )
        message.top_candidates.extend(
            pb.Candidate(bytes=c.bytes, logprob=c.logprob, id=c.id) for c in token.top
        )
    return message


def outcome_to_proto(outcome: Outcome) -> pb.Outcome:
    """How a reply ended as a message."""
    return pb.Outcome(
        finish_reason=_FINISHES[outcome.finish_reason],
        stop_string=outcome.stop_string,
        usage=pb.Usage(
            prompt_tokens=max(usage.seat.prompt_tokens for usage in outcome.usage),
            completion_tokens=outcome.num_tokens,
            members=[_usage_to_proto(usage) for usage in outcome.usage],
        ),
        seed=outcome.seed,
        notices=map(notice_to_proto, outcome.notices),
        blend=outcome.blend,
        blend_revision=outcome.revision,
        weights=outcome.weights,
        law=_LAWS[outcome.law],
        dropped_share=outcome.dropped_share,
    )


def proposal_to_proto(proposal: Proposal) -> pb.Proposal:
    """One of several replies as a message."""
    ended = proposal.outcome
    return pb.Proposal(
        member=proposal.member,
        layer=proposal.layer,
        state=_STATES[proposal.state],
        text=proposal.text,
        finish_reason=_FINISHES[ended.finish_reason] if ended else pb.FINISH_REASON_UNSPECIFIED,
        score=proposal.score,
        answer=proposal.answer or "",
        chosen=proposal.is_chosen,
        seed=proposal.seed,
        error=proposal.error,
    )


def score_to_proto(score: Score) -> pb.ScoreResponse:
    """A measurement as a message."""
    members = [
        pb.MemberScore(
            member=member.member,
            weight=member.weight,
            tokens=[pb.TokenScore(bytes=t.bytes, logprob=t.logprob) for t in member.tokens],
            logprob=member.logprob,
        )
        for member in score.members
    ]
    return pb.ScoreResponse(
        members=members,
        mixture_tokens=[pb.TokenScore(bytes=t.bytes, logprob=t.logprob) for t in score.mixture],
        logprob=score.logprob,
        num_bytes=score.num_bytes,
        blend=score.blend,
        blend_revision=score.revision,
    )


def blend_to_proto(blend: ServedBlend, max_tokens: int) -> pb_blend.Blend:
    """A blend as a message."""
    spec = blend.spec
    sampling = spec.sampling
    return pb_blend.Blend(
        name=blend.name,
        description=spec.description,
        method=spec.method,
        span=span_to_proto(blend.span),
        members=[
            pb_blend.BlendMember(
                name=name,
                weight=spec.weights.get(name, 0.0),
                role=spec.roles.get(name, ""),
                model=blend.infos[name].model,
                max_context=blend.infos[name].max_context,
                vocabulary=blend.infos[name].vocabulary,
                has_chat_template=blend.infos[name].has_chat_template,
            )
            for name in spec.members
        ],
        revision=blend.revision,
        exchange_kind=_FORMS[blend.form],
        default_sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
        ),
        max_tokens=max_tokens,
        rule=spec.rule_name,
        parameters=spec.parameters,
    )


def _usage_to_proto(usage: MemberUsage) -> pb.MemberUsage:
    return pb.MemberUsage(
        member=usage.member,
        prompt_tokens=usage.seat.prompt_tokens,
        drawn_tokens=usage.drawn_tokens,
        processed_tokens=usage.seat.processed_tokens,
        cached_tokens=usage.seat.cached_tokens,
        forward_passes=usage.seat.forward_passes,
        steps=usage.seat.steps,
        leases=usage.leases,
    )
