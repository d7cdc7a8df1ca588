"""What a caller may ask for, and the message that asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from cluster.errors import InvalidRequest
from cuvee.v1 import generation_pb2 as pb

Role = Literal["system", "user", "assistant"]
Span = int | Literal["token", "word", "sentence", "response"]

_ROLES: dict[str, pb.Role.ValueType] = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
_SPANS: dict[str, pb.SpanUnit.ValueType] = {
    "word": pb.SPAN_UNIT_WORD,
    "sentence": pb.SPAN_UNIT_SENTENCE,
    "response": pb.SPAN_UNIT_RESPONSE,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


Prompt = str | Sequence[Message]  # a text to continue, or a conversation to answer


class ScoreOptions(TypedDict, total=False):
    """What a measurement may set; what is absent takes the server's default."""

    blend: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    weights: Mapping[str, float]  # by member, replacing all
    member: str  # alone
    parameters: Mapping[str, float]  # of the blend's method
    timeout_s: float


class Options(ScoreOptions, total=False):
    """What a reply may set; what is absent takes the blend's or the server's default."""

    seed: int  # drawn by the client where it is absent
    span: Span
    max_tokens: int
    min_tokens: int
    stop: Sequence[str]
    ignore_eos: bool
    json_schema: str
    regex: str
    logprobs: bool
    num_top_candidates: int
    user_id: str
    conversation_id: str


def generation_request(prompt: Prompt, options: Options) -> pb.StreamGenerateRequest:
    """Ask for a reply; raises InvalidRequest for what the wire has no room for."""
    with_format = [name for name in ("json_schema", "regex") if name in options]
    if len(with_format) > 1:
        raise InvalidRequest(
            "CONFLICTING_OPTIONS", "got json_schema and regex; expected one of them", field="format"
        )
    try:
        request = pb.StreamGenerateRequest(
            blend=options.get("blend", ""),
            sampling=_sampling(options),
            stopping=pb.Stopping(
                max_tokens=options.get("max_tokens"),
                min_tokens=options.get("min_tokens"),
                stop=options.get("stop", ()),
                ignore_eos=options.get("ignore_eos"),
            ),
            output=pb.OutputOptions(
                logprobs=options.get("logprobs", False),
                num_top_candidates=options.get("num_top_candidates", 0),
            ),
            overrides=_overrides(options),
            user_id=options.get("user_id", ""),
            conversation_id=options.get("conversation_id", ""),
        )
        if "seed" in options:
            request.sampling.seed = options["seed"]
        _put(request, prompt)
    except ValueError as error:
        raise InvalidRequest("INVALID_VALUE", str(error)) from None
    if "span" in options:
        request.overrides.span.CopyFrom(_span(options["span"]))
    for name in with_format:
        setattr(request.format, name, options["regex" if name == "regex" else "json_schema"])
    return request


def score_request(prompt: Prompt, continuation: str, options: ScoreOptions) -> pb.ScoreRequest:
    """Ask for a measurement; raises InvalidRequest for what the wire has no room for."""
    try:
        request = pb.ScoreRequest(
            blend=options.get("blend", ""),
            continuation=continuation,
            sampling=_sampling(options),
            overrides=_overrides(options),
        )
        _put(request, prompt)
        return request
    except ValueError as error:
        raise InvalidRequest("INVALID_VALUE", str(error)) from None


def count_request(prompt: Prompt, blend: str) -> pb.CountTokensRequest:
    """Ask for the length of an input."""
    request = pb.CountTokensRequest(blend=blend)
    _put(request, prompt)
    return request


def _sampling(options: ScoreOptions) -> pb.Sampling:
    return pb.Sampling(
        temperature=options.get("temperature"),
        top_p=options.get("top_p"),
        top_k=options.get("top_k"),
        min_p=options.get("min_p"),
    )


def _overrides(options: ScoreOptions) -> pb.BlendOverrides:
    return pb.BlendOverrides(
        weights=options.get("weights"),
        member=options.get("member", ""),
        parameters=options.get("parameters"),
    )


def _put(
    request: pb.StreamGenerateRequest | pb.ScoreRequest | pb.CountTokensRequest, prompt: Prompt
) -> None:
    if isinstance(prompt, str):
        request.prompt = prompt
        return
    request.chat.SetInParent()  # empty, it is refused as one
    for message in prompt:
        request.chat.messages.add(role=_ROLES[message.role], content=message.content)


def _span(span: Span) -> pb.Span:
    if isinstance(span, int) or span == "token":
        return pb.Span(num_tokens=1 if span == "token" else span)
    if span not in _SPANS:
        raise InvalidRequest(
            "INVALID_VALUE",
            f"got {span!r}; expected a number of tokens, token, word, sentence or response",
            field="overrides.span",
        )
    return pb.Span(unit=_SPANS[span])
