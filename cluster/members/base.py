"""The contract between router and replica, without any wire.

A `Step` says how much of what the replica knows still stands, what was added since, and what to do
next. It is complete: a fresh replica that gets the whole transcript as the delta does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from cluster.distribution import Distribution
from cluster.engine.types import SamplingParams
from cluster.errors import CuveeError
from cluster.members.pressure import Pressure
from cluster.text.borders import Border
from cluster.text.chat import Message
from cluster.text.grammar import OutputFormat

NEVER_ENDS = 0xFFFFFFFF  # `end_allowed_from` of a reply that must not end its turn


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """What a replica tells about its model; equal for all replicas of a member."""

    member: str
    model: str  # as the blend file names it
    vocabulary: str  # fingerprint; equal content gives equal fingerprints
    max_context: int  # tokens, prompt and reply together
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply follows: text to continue, or a conversation to answer; exactly one is set."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a member's token ids stand for."""

    bytes: Sequence[bytes]  # by id; control tokens are no text
    end_ids: frozenset[int]  # end a turn


class Form(Enum):
    """In what form members tell each other what was said."""

    TOKEN_IDS = "token_ids"  # one vocabulary: exact
    TEXT = "text"  # different vocabularies: each keeps its own canonical tokenization
    BYTES = "bytes"  # any vocabularies: each tells the law of the next byte, or of the end (256)


@dataclass(frozen=True, slots=True)
class SequenceStart:
    """How a sequence begins; everything that stays fixed for its life."""

    prompt: Prompt
    form: Form
    sampling: SamplingParams
    seed: int
    end_allowed_from: int = 0  # no end of turn before this position
    num_top: int = 0  # candidates to report per token
    prefill: bool = True  # process the prompt at once, before a step asks for it
    max_prompt_tokens: int = NEVER_ENDS
    format: OutputFormat | None = None  # what the whole reply has to match
    score_prompt: bool = False  # report the log-probabilities of all its tokens but the first
    min_share: float = 0.0  # Form.BYTES: splits into tokens with less of all are not followed


@dataclass(frozen=True, slots=True)
class Doubt:
    """Hand over, at the beginning of a span, when the member is not sure of the next token."""

    measure: Literal["confidence", "entropy"]
    threshold: float  # in doubt below this confidence, or above this entropy in nats
    span_tokens: int = 0  # spans of so many tokens; 0: spans by border
    num_said: int = 0  # tokens of the run that another replica said before


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw a run of tokens.

    Of a draft, what is `checked` is drawn, all from one pass, and told up to and including the
    first token that is not the drafted one: there the run ends. If there is none, it goes on
    behind the draft. The last draft token counts among `max_tokens` like all others.

    At a border the run goes on while the position's speaker draw lies in `share`, the half-open
    interval of the member's cumulative weight: so a replica knows by itself whether it keeps the
    word, and a run of one member is one step.
    """

    position: int  # the number in the reply of the first token to draw
    max_tokens: int
    border: Border = Border.NONE
    share: tuple[float, float] = (0.0, 1.0)
    begins_span: bool = True  # a border before the first token does not count
    retake: bool = False  # the first token replaces one dropped at a border
    whole_characters: bool = False  # go on past max_tokens until the last character is whole
    score_news: bool = False  # report the log-probabilities of the step's token ids
    doubt: Doubt | None = None
    num_drafted: int = 0  # of the step's token ids, the last ones are a draft of this run's first
    checked: tuple[int, ...] = ()  # where in the draft this member has to draw: offsets, ascending
    by_id: bool = False  # race among all ids, as the router does for a distribution of its own

    @property
    def looks_back(self) -> bool:
        """Whether how far it goes depends on the text before, such as a character that is cut."""
        return self.border is not Border.NONE or self.whole_characters or self.doubt is not None


@dataclass(frozen=True, slots=True)
class ScoreText:
    """Measure a continuation of what stands."""

    text: str
    score_news: bool = False  # report the model's own log-probabilities beside the sampling's


@dataclass(frozen=True, slots=True)
class Rank:
    """Tell the distribution of the next token, or of the next byte, which is always told whole.

    Asked again without news, it costs no pass.
    """

    position: int  # the number in the reply of that token
    num_top: int = 0  # how many likeliest ids to tell; 0: all
    ids: Sequence[int] = ()  # tell these too
    is_warped: bool = False  # under the sequence's sampling; else the model's own
    with_state: bool = False  # tell the hidden state that it is made from, too
    num_positions: int = 1  # tell of the last given tokens too, in one event each
    score_news: bool = False  # report the model's own log-probabilities of the step's token ids


@dataclass(frozen=True, slots=True)
class Step:
    """The transcript's news, then what to do."""

    base: int  # how much of the known reply stands: tokens, or bytes for Form.TEXT and Form.BYTES
    want: Draw | ScoreText | Rank
    text: bytes = b""  # what follows the base; for Form.TEXT up to where this run began
    token_ids: tuple[int, ...] = ()  # what follows; for Form.TEXT the member's own since then


@dataclass(frozen=True, slots=True)
class TopCandidate:
    """A token that might have been drawn."""

    id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class StepToken:
    """A drawn or scored token."""

    id: int
    bytes: bytes
    logprob: float
    top: tuple[TopCandidate, ...] = ()


class RunEnd(Enum):
    """Why a step is over."""

    COMPLETE = "complete"  # max_tokens drawn, or everything scored
    BORDER = "border"  # at a border the draw gave the word to another member
    DOUBT = "doubt"  # the member was not sure; the token it drew was dropped
    END_OF_TURN = "end_of_turn"
    CONTEXT_FULL = "context_full"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Opened:
    """The sequence is open."""

    prompt_tokens: int
    prompt_digest: int = 0  # equal for equal tokens; of a prompt that is scored


@dataclass(slots=True)
class StepEvent:
    """News of a step; the last one of a step has an `end`. Counts are since the last event."""

    tokens: list[StepToken]
    end: RunEnd | None = None
    num_passes: int = 0
    num_processed: int = 0
    num_cached: int = 0
    distribution: Distribution | None = None  # the answer to a Rank
    news_logprobs: Sequence[float] = ()  # the answer to score_prompt, then to score_news
    state: Sequence[float] = ()  # the answer to a Rank with_state


@dataclass(slots=True)
class Failed:
    """The sequence can go no further."""

    error: CuveeError


Event = Opened | StepEvent | Failed
Emit = Callable[[Event], None]  # called on the event loop; never blocks


class Channel(Protocol):
    """One sequence on one replica. No call waits; all news comes through the `Emit` of its open."""

    def step(self, step: Step) -> None:
        """Begin a step; answered by `StepEvent`s, the last with an end, or by `Failed`.

        Only one step of a sequence may be under way.
        """

    def cancel(self) -> None:
        """End the running step soon; it is still answered by an end."""

    def close(self) -> None:
        """Forget the sequence; nothing more is heard of it."""


class Transport(Protocol):
    """Reaches one replica."""

    def open(self, start: SequenceStart, emit: Emit) -> Channel:
        """Begin a sequence; answered by `Opened` or `Failed`."""

    async def tokens(self) -> Tokens:
        """The member's tokens; raises ReplicaLost."""


class Lease(Protocol):
    """A hold on one replica; ends with `release`, or by itself with the replica."""

    @property
    def info(self) -> MemberInfo:
        """What is leased."""

    @property
    def transport(self) -> Transport:
        """How to reach it."""

    async def release(self) -> None:
        """Give it back; never fails, may be called again."""


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """How one replica is."""

    address: str  # host:port of its exchange
    num_sequences: int  # open
    pressure: Pressure


class Member(Protocol):
    """A member as the router sees it: a source of leases."""

    @property
    def name(self) -> str:
        """Its name in the blend file."""

    @property
    def is_gone(self) -> bool:
        """Whether it has no replica at all now, though it should; another may be on its way."""

    async def lease(self, timeout_s: float, affinity: str = "") -> Lease:
        """Hold one of its replicas; raises Overloaded or Unavailable if none can be had in time.

        Leases of one `affinity` go to one replica, while it is there and has room.
        """

    async def replicas(self) -> list[ReplicaState]:
        """How each of its replicas is; raises Unavailable."""
