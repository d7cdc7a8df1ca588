"""What an answer is made of, without protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cuvee.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that might have been drawn."""

    id: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a reply and the member that drew it."""

    member: str
    bytes: bytes
    id: int
    position: int
    logprob: float | None = None  # when asked for
    candidates: tuple[Candidate, ...] = ()  # when asked for, best first
    shares: Mapping[str, float] = field(default_factory=dict)  # of members that drew it together
    truncation_bound: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)  # where these change

    @classmethod
    def of(cls, message: pb.Token) -> Token:
        """From the wire."""
        return cls(
            member=message.member,
            bytes=message.bytes,
            id=message.id,
            position=message.position,
            logprob=message.logprob if message.HasField("logprob") else None,
            candidates=tuple(Candidate(c.id, c.bytes, c.logprob) for c in message.top_candidates),
            shares={share.member: share.share for share in message.shares},
            truncation_bound=message.truncation_bound,
            weights={weight.member: weight.share for weight in message.weights},
        )


@dataclass(frozen=True, slots=True)
class MemberUsage:
    """What a reply cost one member."""

    member: str
    prompt_tokens: int
    drawn_tokens: int
    processed_tokens: int
    cached_tokens: int
    forward_passes: int
    steps: int
    leases: int
    drafted_tokens: int = 0  # for others to decide on
    accepted_tokens: int = 0  # of these, how many stood


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply cost; of one over several streams, the last stream."""

    prompt_tokens: int
    completion_tokens: int
    members: tuple[MemberUsage, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """One of several whole replies from which the answer was chosen or written."""

    member: str
    layer: int  # from 1
    state: str  # complete, late or failed
    text: str
    finish_reason: str
    score: float | None
    answer: str
    is_chosen: bool
    seed: int
    error: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that happened to a reply on its way."""

    kind: str  # member_gone
    member: str
    position: int  # of the first token that it concerns
    message: str

    @classmethod
    def of(cls, message: pb.Notice) -> Notice:
        """From the wire."""
        kind = pb.NoticeKind.Name(message.kind).removeprefix("NOTICE_KIND_").lower()
        return cls(kind, message.member, message.position, message.message)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply ended."""

    finish_reason: str  # end_of_turn, stop_string, max_tokens or context_full
    stop_string: str
    seed: int
    blend: str
    blend_revision: str
    usage: Usage
    weights: Mapping[str, float]  # the members' at the end, where they change
    proposals: tuple[Proposal, ...]
    law: str  # exact, bounded or approximate
    dropped_share: float
    notices: tuple[Notice, ...]  # all of them

    @classmethod
    def of(cls, message: pb.Outcome) -> Outcome:
        """From the wire."""
        return cls(
            finish_reason=_finish(message.finish_reason),
            stop_string=message.stop_string,
            seed=message.seed,
            blend=message.blend,
            blend_revision=message.blend_revision,
            usage=_usage(message.usage),
            weights=dict(message.weights),
            proposals=tuple(_proposal(proposal) for proposal in message.proposals),
            law=pb.Law.Name(message.law).removeprefix("LAW_").lower(),
            dropped_share=message.dropped_share,
            notices=tuple(map(Notice.of, message.notices)),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of a reply."""

    text: str
    tokens: tuple[Token, ...]
    notices: tuple[Notice, ...] = ()

    @classmethod
    def of(cls, message: pb.StreamGenerateResponse) -> Piece:
        """From the wire."""
        tokens, notices = map(Token.of, message.tokens), map(Notice.of, message.notices)
        return cls(message.text_delta, tuple(tokens), tuple(notices))


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply."""

    text: str
    tokens: tuple[Token, ...]
    outcome: Outcome

    @classmethod
    def of(cls, pieces: Iterable[Piece], outcome: Outcome) -> Reply:
        """From all its pieces."""
        pieces = list(pieces)
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        return cls("".join(piece.text for piece in pieces), tokens, outcome)


def _finish(reason: pb.FinishReason.ValueType) -> str:
    return pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def _usage(message: pb.Usage) -> Usage:
    members = tuple(
        MemberUsage(
            member=usage.member,
            prompt_tokens=usage.prompt_tokens,
            drawn_tokens=usage.drawn_tokens,
            processed_tokens=usage.processed_tokens,
            cached_tokens=usage.cached_tokens,
            forward_passes=usage.forward_passes,
            steps=usage.steps,
            leases=usage.leases,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
        )
        for usage in message.members
    )
    return Usage(message.prompt_tokens, message.completion_tokens, members)


def _proposal(message: pb.Proposal) -> Proposal:
    return Proposal(
        member=message.member,
        layer=message.layer,
        state=pb.ProposalState.Name(message.state).removeprefix("PROPOSAL_STATE_").lower(),
        text=message.text,
        finish_reason=_finish(message.finish_reason),
        score=message.score if message.HasField("score") else None,
        answer=message.answer,
        is_chosen=message.chosen,
        seed=message.seed,
        error=message.error,
    )
