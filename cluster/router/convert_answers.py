"""What the router answers, as protobuf messages."""

from __future__ import annotations

from cluster.blending.base import Span
from cluster.members.base import Form
from cluster.router.answers import (
    FinishReason,
    Law,
    MemberUsage,
    Outcome,
    Proposal,
    ProposalState,
    ReplyToken,
    Score,
    Update,
)
from cluster.router.blends import ServedBlend
from cluster.router.convert import SPAN_UNITS
from cluster.router.notices import Notice, NoticeKind
from cluster.router.requests import (
    Output,
)
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


_SPAN_UNITS_BACK = {span: unit for unit, span in SPAN_UNITS.items()}


_FORMS = {
    Form.TOKEN_IDS: pb_blend.EXCHANGE_KIND_TOKEN_IDS,
    Form.TEXT: pb_blend.EXCHANGE_KIND_TEXT,
    Form.BYTES: pb_blend.EXCHANGE_KIND_BYTES,
}


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
        drafted_tokens=usage.drafted_tokens,
        accepted_tokens=usage.accepted_tokens,
    )
