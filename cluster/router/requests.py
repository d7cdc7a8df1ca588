"""What a caller asks, checked field by field, and what the answer is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cluster.blending.base import Span
from cluster.errors import InvalidRequest
from cluster.members.base import Prompt, StepToken
from cluster.members.seat import SeatUsage
from cluster.router.notices import Notice
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


class Law(Enum):
    """From which law a reply was drawn, compared with what its blend's rule says."""

    EXACT = "exact"
    BOUNDED = "bounded"  # each token says by how much at most it differs
    APPROXIMATE = "approximate"  # by bytes: unlikely splits into tokens were left out


class FinishReason(Enum):
    """Why a reply ended."""

    END_OF_TURN = "end_of_turn"
    STOP_STRING = "stop_string"
    MAX_TOKENS = "max_tokens"
    CONTEXT_FULL = "context_full"


@dataclass(frozen=True, slots=True)
class ReplyToken:
    """One token of a reply and the member that drew it."""

    member: str
    position: int
    token: StepToken
    shares: tuple[tuple[str, float], ...] = ()  # of each member, where several drew it together
    bound: float = 0.0  # then how far truncation may have moved what it was drawn from
    weights: tuple[tuple[str, float], ...] = ()  # when its speaker was drawn, where these change


@dataclass(slots=True)
class MemberUsage:
    """What a reply cost one member."""

    member: str
    drawn_tokens: int = 0
    leases: int = 0
    seat: SeatUsage = field(default_factory=SeatUsage)

    def __iadd__(self, other: MemberUsage) -> MemberUsage:
        """Add what another reply cost it."""
        self.drawn_tokens += other.drawn_tokens
        self.leases += other.leases
        self.seat += other.seat
        return self


class ProposalState(Enum):
    """What became of a proposal."""

    COMPLETE = "complete"
    LATE = "late"  # the time limit passed, and others were enough
    FAILED = "failed"  # its member failed, and others were enough


@dataclass(frozen=True, slots=True)
class Proposal:
    """One of several whole replies from which the answer is chosen or written."""

    member: str
    layer: int  # from 1
    seed: int
    state: ProposalState
    text: str = ""
    tokens: tuple[ReplyToken, ...] = field(default=(), repr=False)
    outcome: Outcome | None = None  # of a complete one
    score: float | None = None  # what it was ranked by, higher is better
    answer: str | None = None  # found in it, where members vote
    is_chosen: bool = False  # it is the answer, or was given to the fuser
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply ended and what it cost."""

    finish_reason: FinishReason
    stop_string: str
    seed: int
    blend: str
    revision: str
    num_tokens: int
    usage: tuple[MemberUsage, ...]
    weights: Mapping[str, float] = field(default_factory=dict)  # at the end, where they adapt
    proposals: tuple[Proposal, ...] = ()
    law: Law = Law.EXACT
    dropped_share: float = 0.0  # of splits into tokens, summed over bytes and members
    notices: tuple[Notice, ...] = ()  # all of them


@dataclass(frozen=True, slots=True)
class Start:
    """What it takes to ask for the rest of a reply, should its stream break."""

    seed: int
    blend: str
    revision: str


@dataclass(slots=True)
class Update:
    """The next piece of a reply; the first one has its start, the last one the outcome."""

    text: str = ""
    tokens: list[ReplyToken] = field(default_factory=list)
    outcome: Outcome | None = None
    notices: tuple[Notice, ...] = ()  # what has happened before the next token
    start: Start | None = None


@dataclass(frozen=True, slots=True)
class MemberScore:
    """A continuation as one member sees it."""

    member: str
    weight: float
    tokens: tuple[StepToken, ...]
    own_logprobs: Sequence[float] = ()  # of the tokens, before all warping; where weights adapt

    @property
    def logprob(self) -> float:
        """Natural logarithm of the continuation's probability under this member."""
        return math.fsum(token.logprob for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Score:
    """A continuation under every member and, where it has a closed form, under the blend."""

    blend: str
    revision: str
    members: tuple[MemberScore, ...]
    mixture: tuple[StepToken, ...]  # tokens, or bytes; empty where members' tokens differ
    logprob: float | None
    num_bytes: int


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
