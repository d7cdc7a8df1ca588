"""What a caller asks, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.blending.base import Span
from cluster.errors import InvalidRequest
from cluster.members.base import Prompt
from cluster.router.resumption import Resumption
from cluster.text.grammar import OutputFormat

MAX_STOP_STRINGS = 16
MAX_TOP_CANDIDATES = 20


def _check(
    name: str, value: float | None, low: float, high: float, expected: str, *, above: bool = False
) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        raise _refuse(f"sampling.{name}", value, expected)


def _refuse(path: str, given: object, expected: str) -> InvalidRequest:
    return InvalidRequest("INVALID_VALUE", f"got {given}; expected {expected}", field=path)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; None takes the blend's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf, "a number of at least 0")
        _check("top_p", self.top_p, 0, 1, "a number above 0 and at most 1", above=True)
        _check("min_p", self.min_p, 0, 1, "a number between 0 and 1")


@dataclass(frozen=True, slots=True)
class Stopping:
    """When a reply ends; None takes the server's limit."""

    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise _refuse("stopping.max_tokens", self.max_tokens, "at least 1")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refuse(
                "stopping.min_tokens", self.min_tokens, f"at most max_tokens, {self.max_tokens}"
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _refuse(
                "stopping.stop", f"{len(self.stop)} strings", f"at most {MAX_STOP_STRINGS}"
            )
        for index, stop in enumerate(self.stop):
            if not stop:
                raise _refuse(f"stopping.stop[{index}]", "an empty string", "some text")

    def check_open(self) -> None:
        """Refuse what says when to end, for a reply whose format says so; max_tokens may cut it."""
        for name, given in (
            ("min_tokens", self.min_tokens),
            ("stop", self.stop),
            ("ignore_eos", self.ignore_eos),
        ):
            if given:
                raise InvalidRequest(
                    "CONFLICTING_OPTIONS",
                    f"got {name} and a format; expected one of them: a format decides itself "
                    "where the reply may end",
                    field=f"stopping.{name}",
                )


@dataclass(frozen=True, slots=True)
class Output:
    """What the answer tells about its tokens."""

    logprobs: bool = False
    num_top_candidates: int = 0
    attribution: bool = True

    def __post_init__(self) -> None:
        if self.num_top_candidates > MAX_TOP_CANDIDATES:
            raise _refuse(
                "output.num_top_candidates",
                self.num_top_candidates,
                f"at most {MAX_TOP_CANDIDATES}",
            )


@dataclass(frozen=True, slots=True)
class Overrides:
    """Changes to the blend for one request."""

    weights: Mapping[str, float] | None = None
    span: Span | None = None
    member: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.member is not None and self.weights is not None:
            raise InvalidRequest(
                "CONFLICTING_OVERRIDES",
                "got both member and weights; expected one of them: a pinned member has all weight",
                field="overrides.member",
            )
        if self.weights is None:
            return
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise _refuse(f"overrides.weights[{name}]", weight, "a number of at least 0")
        if math.fsum(self.weights.values()) <= 0:
            raise InvalidRequest(
                "INVALID_WEIGHTS",
                "got weights that sum to 0; expected a positive sum",
                field="overrides.weights",
            )

    def check_names(self, known: Iterable[str], blend: str) -> None:
        """Refuse members that the blend does not have."""
        names = tuple(known)
        given = [(f"overrides.weights[{name}]", name) for name in self.weights or ()]
        if self.member is not None:
            given.append(("overrides.member", self.member))
        for path, name in given:
            if name not in names:
                raise InvalidRequest(
                    "UNKNOWN_MEMBER",
                    f"got {name!r}; expected a member of blend {blend!r}: {', '.join(names)}",
                    field=path,
                )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for one reply."""

    blend: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    stopping: Stopping = Stopping()
    output: Output = Output()
    overrides: Overrides = Overrides()
    user_id: str = ""
    conversation_id: str = ""
    format: OutputFormat | None = None
    resumption: Resumption | None = None

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if self.format is not None:
            self.stopping.check_open()
        if self.resumption is not None and self.sampling.seed is None:
            raise InvalidRequest(
                "MISSING_SEED",
                "got none; expected the seed that the reply began with, as its start said",
                field="sampling.seed",
            )


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A request to measure a continuation; sampling that is not given means no warping."""

    blend: str
    prompt: Prompt
    continuation: str
    sampling: Sampling = Sampling()
    overrides: Overrides = Overrides()

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not self.continuation:
            raise InvalidRequest(
                "EMPTY_CONTINUATION", "got no text; expected some to measure", field="continuation"
            )


def check_prompt(prompt: Prompt) -> None:
    """Refuse a prompt without content."""
    if prompt.messages is None:
        if not prompt.text:
            raise InvalidRequest(
                "EMPTY_PROMPT", "got no prompt; expected text or a chat", field="prompt"
            )
        return
    if not prompt.messages:
        raise InvalidRequest(
            "EMPTY_PROMPT", "got no messages; expected some", field="chat.messages"
        )
    if prompt.messages[-1].role == "assistant":
        raise InvalidRequest(
            "INVALID_ROLE",
            "the last message is the assistant's; expected one to answer",
            field=f"chat.messages[{len(prompt.messages) - 1}].role",
        )
