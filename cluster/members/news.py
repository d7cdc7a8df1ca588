"""A replica's news as protobuf messages, and back: what happened to sequences and steps."""

from __future__ import annotations

from cluster.errors import (
    CuveeError,
    InternalError,
    InvalidRequest,
    Overloaded,
    ReplicaLost,
    Unsupported,
)
from cluster.members import packed
from cluster.members.base import (
    Event,
    Failed,
    Opened,
    RunEnd,
    StepEvent,
    StepToken,
    TopCandidate,
)
from cuvee.v1 import generation_pb2 as pb_gen
from cuvee.v1 import member_pb2 as pb

_ENDS = {
    None: pb.RUN_END_UNSPECIFIED,
    RunEnd.COMPLETE: pb.RUN_END_COMPLETE,
    RunEnd.BORDER: pb.RUN_END_BORDER,
    RunEnd.END_OF_TURN: pb.RUN_END_END_OF_TURN,
    RunEnd.CONTEXT_FULL: pb.RUN_END_CONTEXT_FULL,
    RunEnd.CANCELLED: pb.RUN_END_CANCELLED,
    RunEnd.DOUBT: pb.RUN_END_DOUBT,
}


_ENDS_BACK = {value: end for end, value in _ENDS.items()}


_RETRY_DELAY_S = 1.0


def add_event(response: pb.ExchangeResponse, sequence: int, event: Event) -> None:
    """Put a replica's news into the next message to the router."""
    if isinstance(event, StepEvent):
        response.events.append(
            pb.StepEvent(
                sequence=sequence,
                tokens=[_token_to_proto(token) for token in event.tokens],
                end=_ENDS[event.end],
                num_passes=event.num_passes,
                num_processed=event.num_processed,
                num_cached=event.num_cached,
                distribution=packed.distribution_to_proto(event.distribution),
                news_logprobs=event.news_logprobs,
                state=event.state,
            )
        )
    elif isinstance(event, Opened):
        response.opened.append(
            pb.SequenceOpened(
                sequence=sequence,
                prompt_tokens=event.prompt_tokens,
                prompt_digest=event.prompt_digest,
            )
        )
    else:
        response.failed.append(_error_to_proto(event.error, sequence))


def step_event_from_proto(message: pb.StepEvent) -> StepEvent:
    """A step's news from a message."""
    return StepEvent(
        [_token_from_proto(token) for token in message.tokens],
        _ENDS_BACK[message.end],
        message.num_passes,
        message.num_processed,
        message.num_cached,
        packed.distribution_from_proto(message),
        tuple(message.news_logprobs),
        tuple(message.state),
    )


def failed_from_proto(message: pb.SequenceFailed) -> Failed:
    """A failure from a message."""
    reason, text, field = message.reason, message.message, message.field
    error: CuveeError
    match message.kind:
        case pb.ERROR_KIND_INVALID_REQUEST:
            error = InvalidRequest(reason, text, field=field)
        case pb.ERROR_KIND_UNSUPPORTED:
            error = Unsupported(reason, text, field=field)
        case pb.ERROR_KIND_OVERLOADED:
            error = Overloaded(reason, text, retry_delay_s=_RETRY_DELAY_S)
        case pb.ERROR_KIND_LEASE_LOST:
            error = ReplicaLost(reason, text)
        case _:
            error = InternalError(reason, text)
    return Failed(error)


def _error_to_proto(error: CuveeError, sequence: int) -> pb.SequenceFailed:
    kinds = (
        (InvalidRequest, pb.ERROR_KIND_INVALID_REQUEST),
        (Unsupported, pb.ERROR_KIND_UNSUPPORTED),
        (Overloaded, pb.ERROR_KIND_OVERLOADED),
        (ReplicaLost, pb.ERROR_KIND_LEASE_LOST),
    )
    kind = next((k for cls, k in kinds if isinstance(error, cls)), pb.ERROR_KIND_UNSPECIFIED)
    return pb.SequenceFailed(
        sequence=sequence,
        kind=kind,
        reason=error.reason,
        message=error.message,
        field=error.field,
    )


def _token_to_proto(token: StepToken) -> pb.StepToken:
    return pb.StepToken(
        id=token.id,
        bytes=token.bytes,
        logprob=token.logprob,
        top_candidates=[
            pb_gen.Candidate(bytes=c.bytes, logprob=c.logprob, id=c.id) for c in token.top
        ],
    )


def _token_from_proto(token: pb.StepToken) -> StepToken:
    top = tuple(TopCandidate(c.id, c.bytes, c.logprob) for c in token.top_candidates)
    return StepToken(token.id, token.bytes, token.logprob, top)
