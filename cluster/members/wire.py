"""What a router asks of a replica as protobuf messages, and back: sequences and steps."""

from __future__ import annotations

from typing import Literal

from cluster.engine.types import SamplingParams
from cluster.errors import (
    InternalError,
    InvalidRequest,
)
from cluster.members import packed
from cluster.members.base import (
    Doubt,
    Draw,
    Form,
    Prompt,
    Rank,
    ScoreText,
    SequenceStart,
    Step,
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
_MEASURES: dict[Literal["confidence", "entropy"], pb.CertaintyMeasure.ValueType] = {
    "confidence": pb.CERTAINTY_MEASURE_CONFIDENCE,
    "entropy": pb.CERTAINTY_MEASURE_ENTROPY,
}
_MEASURES_BACK = {value: measure for measure, value in _MEASURES.items()}


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
    message.draw.num_drafted = want.num_drafted
    message.draw.checked.extend(want.checked)
    message.draw.by_id = want.by_id
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
            num_drafted=draw.num_drafted,
            checked=tuple(draw.checked),
            by_id=draw.by_id,
        )
    return Step(message.base, want, message.text, tuple(message.token_ids))


def _doubt_from_proto(doubt: pb.Doubt) -> Doubt:
    measure = _MEASURES_BACK.get(doubt.measure)
    if measure is None:
        raise InternalError("UNKNOWN_MEASURE", f"certainty measure {doubt.measure} is not known")
    return Doubt(measure, doubt.threshold, doubt.span_tokens, doubt.num_said)
