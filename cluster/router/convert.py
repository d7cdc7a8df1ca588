"""What callers ask, from protobuf messages."""

from __future__ import annotations

from cluster.blending.base import Span
from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.members.wire import chat_from_proto, format_from_proto
from cluster.router.notices import Notice, NoticeKind
from cluster.router.requests import (
    GenerationRequest,
    Output,
    Overrides,
    Sampling,
    ScoreRequest,
    Stopping,
)
from cluster.router.resumption import ReceivedToken, Resumption
from cuvee.v1 import generation_pb2 as pb

SPAN_UNITS: dict[pb.SpanUnit.ValueType, Span] = {
    pb.SPAN_UNIT_WORD: "word",
    pb.SPAN_UNIT_SENTENCE: "sentence",
    pb.SPAN_UNIT_RESPONSE: "response",
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
    if message.unit in SPAN_UNITS:
        return SPAN_UNITS[message.unit]
    raise InvalidRequest(
        "INVALID_VALUE",
        "got no span; expected num_tokens of at least 1, or unit WORD, SENTENCE or RESPONSE",
        field="overrides.span",
    )
