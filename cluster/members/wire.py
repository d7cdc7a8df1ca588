"""Protobuf at the border of the data plane: dataclasses in, messages out, and back."""

from __future__ import annotations

from typing import Literal

from cluster.engine.types import SamplingParams
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
    Doubt,
    Draw,
    Event,
    Failed,
    Form,
    Opened,
    Prompt,
    Rank,
    RunEnd,
    ScoreText,
    SequenceStart,
    Step,
    StepEvent,
    StepToken,
    TopCandidate,
)
from cluster.text.borders import Border
from cluster.text.chat import Message
from cluster.text.grammar import OutputFormat
from cuvee.v1 import generation_pb2 as pb_gen
from cuvee.v1 import member_pb2 as pb

_ROLES = {
    "system": pb_gen.ROLE_SYSTEM,
    "user": pb_gen.ROLE_USER,
    "assistant": pb_gen.ROLE_ASSISTANT,
}
_ROLE_NAMES = {value: name for name, value in _ROLES.items()}
_FORMS = {
    Form.TOKEN_IDS: pb.EXCHANGE_FORM_TOKEN_IDS,
    Form.TEXT: pb.EXCHANGE_FORM_TEXT,
    Form.BYTES: pb.EXCHANGE_FORM_BYTES,
}
_FORMS_BACK = {value: form for form, value in _FORMS.items()}
_BORDERS = {
    Border.NONE: pb_gen.SPAN_UNIT_UNSPECIFIED,
    Border.WORD: pb_gen.SPAN_UNIT_WORD,
    Border.SENTENCE: pb_gen.SPAN_UNIT_SENTENCE,
}
_BORDERS_BACK = {value: border for border, value in _BORDERS.items()}
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
_MEASURES: dict[Literal["confidence", "entropy"], pb.CertaintyMeasure.ValueType] = {
    "confidence": pb.CERTAINTY_MEASURE_CONFIDENCE,
    "entropy": pb.CERTAINTY_MEASURE_ENTROPY,
}
_MEASURES_BACK = {value: measure for measure, value in _MEASURES.items()}
_RETRY_DELAY_S = 1.0


def chat_to_proto(messages: tuple[Message, ...]) -> pb_gen.Chat:
    """A conversation as a message."""
    return pb_gen.Chat(
        messages=[pb_gen.ChatMessage(role=_ROLES[m.role], content=m.content) for m in messages]
    )


def chat_from_proto(chat: pb_gen.Chat) -> tuple[Message, ...]:
    """A conversation from a message; raises InvalidRequest for a role not given."""
    messages = []
    for index, message in enumerate(chat.messages):
        role = _ROLE_NAMES.get(message.role)
        if role is None:
            raise InvalidRequest(
                "INVALID_ROLE",
                f"got role {message.role}; expected ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT",
                field=f"chat.messages[{index}].role",
            )
        messages.append(Message(role, message.content))
    return tuple(messages)


def format_from_proto(message: pb_gen.OutputFormat) -> OutputFormat:
    """What a reply has to match; raises InvalidRequest."""
    match message.WhichOneof("kind"):
        case "json_schema":
            return OutputFormat("json_schema", message.json_schema)
        case "regex":
            return OutputFormat("regex", message.regex)
        case _:
            expected = "got none; expected json_schema or regex"
            raise InvalidRequest("INVALID_FORMAT", expected, field="format")


def _format_to_proto(wanted: OutputFormat) -> pb_gen.OutputFormat:
    if wanted.kind == "regex":
        return pb_gen.OutputFormat(regex=wanted.text)
    return pb_gen.OutputFormat(json_schema=wanted.text)


def start_to_proto(
    start: SequenceStart, sequence: int, lease_id: str, secret: bytes
) -> pb.OpenSequence:
    """A sequence's beginning as a message."""
    sampling = start.sampling
    message = pb.OpenSequence(
        sequence=sequence,
        lease_id=lease_id,
        lease_secret=secret,
        form=_FORMS[start.form],
        sampling=pb_gen.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=start.seed,
        ),
        end_allowed_from=start.end_allowed_from,
        num_top_candidates=start.num_top,
        prefill=start.prefill,
        max_prompt_tokens=start.max_prompt_tokens,
        score_prompt=start.score_prompt,
        min_share=start.min_share,
    )
    if start.prompt.messages is not None:
        message.chat.CopyFrom(chat_to_proto(start.prompt.messages))
    else:
        message.prompt = start.prompt.text or ""
    if start.format is not None:
        message.format.CopyFrom(_format_to_proto(start.format))
    return message


def start_from_proto(message: pb.OpenSequence) -> SequenceStart:
    """A sequence's beginning from a message."""
    if message.WhichOneof("input") == "chat":
        prompt = Prompt(messages=chat_from_proto(message.chat))
    else:
        prompt = Prompt(text=message.prompt)
    form = _FORMS_BACK.get(message.form)
    if form is None:
        raise InternalError("UNKNOWN_EXCHANGE_FORM", f"exchange form {message.form} is not known")
    sampling = message.sampling
    return SequenceStart(
        prompt=prompt,
        form=form,
        sampling=SamplingParams(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
        ),
        seed=sampling.seed,
        end_allowed_from=message.end_allowed_from,
        num_top=message.num_top_candidates,
        prefill=message.prefill,
        max_prompt_tokens=message.max_prompt_tokens,
        format=format_from_proto(message.format) if message.HasField("format") else None,
        score_prompt=message.score_prompt,
        min_share=message.min_share,
    )


def step_to_proto(step: Step, sequence: int) -> pb.Step:
    """A step as a message."""
    message = pb.Step(sequence=sequence, base=step.base, text=step.text, token_ids=step.token_ids)
    want = step.want
    if isinstance(want, ScoreText):
        message.score.text, message.score.score_news = want.text, want.score_news
        return message
    if isinstance(want, Rank):
        message.rank.position, message.rank.num_top = want.position, want.num_top
        message.rank.ids = packed.ids_to_bytes(want.ids)
        message.rank.is_warped, message.rank.with_state = want.is_warped, want.with_state
        message.rank.num_positions = want.num_positions
        message.rank.score_news = want.score_news
        return message
    message.draw.position = want.position
    message.draw.max_tokens = want.max_tokens
    if want.border is not Border.NONE:  # shares are half of a step's bytes, and for borders only
        message.draw.border = _BORDERS[want.border]
        message.draw.share_begin, message.draw.share_end = want.share
    message.draw.begins_span = want.begins_span
    message.draw.retake = want.retake
    message.draw.whole_characters = want.whole_characters
    message.draw.score_news = want.score_news
    if want.doubt is not None:
        message.draw.doubt.CopyFrom(
            pb.Doubt(
                measure=_MEASURES[want.doubt.measure],
                threshold=want.doubt.threshold,
                span_tokens=want.doubt.span_tokens,
                num_said=want.doubt.num_said,
            )
        )
    return message


def step_from_proto(message: pb.Step) -> Step:
    """A step from a message."""
    want: Draw | ScoreText | Rank
    kind = message.WhichOneof("want")
    if kind == "score":
        want = ScoreText(message.score.text, message.score.score_news)
    elif kind == "rank":
        rank = message.rank
        ids = packed.ids_from_bytes(rank.ids).tolist()
        want = Rank(
            position=rank.position,
            num_top=rank.num_top,
            ids=ids,
            is_warped=rank.is_warped,
            with_state=rank.with_state,
            num_positions=rank.num_positions,
            score_news=rank.score_news,
        )
    else:
        draw = message.draw
        border = _BORDERS_BACK.get(draw.border)
        if border is None:
            raise InternalError("UNKNOWN_BORDER", f"span unit {draw.border} is not a border")
        want = Draw(
            position=draw.position,
            max_tokens=draw.max_tokens,
            border=border,
            share=(draw.share_begin, draw.share_end) if draw.border else (0.0, 1.0),
            begins_span=draw.begins_span,
            retake=draw.retake,
            whole_characters=draw.whole_characters,
            score_news=draw.score_news,
            doubt=_doubt_from_proto(draw.doubt) if draw.HasField("doubt") else None,
        )
    return Step(message.base, want, message.text, tuple(message.token_ids))


def _doubt_from_proto(doubt: pb.Doubt) -> Doubt:
    measure = _MEASURES_BACK.get(doubt.measure)
    if measure is None:
        raise InternalError("UNKNOWN_MEASURE", f"certainty measure {doubt.measure} is not known")
    return Doubt(measure, doubt.threshold, doubt.span_tokens, doubt.num_said)


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
