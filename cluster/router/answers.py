"""What an answer is made of: pieces of a reply, its outcome, and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from cluster.members.base import StepToken
from cluster.members.seat import SeatUsage
from cluster.router.notices import Notice


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
    drafted_tokens: int = 0  # for others to decide on
    accepted_tokens: int = 0  # of these, how many stood
    seat: SeatUsage = field(default_factory=SeatUsage)

    def __iadd__(self, other: MemberUsage) -> MemberUsage:
        """Add what another reply cost it."""
        self.drawn_tokens += other.drawn_tokens
        self.leases += other.leases
        self.drafted_tokens += other.drafted_tokens
        self.accepted_tokens += other.accepted_tokens
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
