"""What a server tells about its blends, and about given texts, without protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cuvee.v1 import blend_pb2
from cuvee.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A measured token, or byte."""

    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class MemberScore:
    """A continuation as one member sees it."""

    member: str
    weight: float
    tokens: tuple[TokenScore, ...]
    logprob: float  # nats


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is."""

    members: tuple[MemberScore, ...]
    mixture_tokens: tuple[TokenScore, ...]
    logprob: float | None  # nats; None where the blend's law has no closed form
    num_bytes: int
    blend: str
    blend_revision: str

    @classmethod
    def of(cls, message: pb.ScoreResponse) -> Score:
        """From the wire."""
        members = tuple(
            MemberScore(m.member, m.weight, _tokens(m), m.logprob) for m in message.members
        )
        return cls(
            members=members,
            mixture_tokens=tuple(TokenScore(t.bytes, t.logprob) for t in message.mixture_tokens),
            logprob=message.logprob if message.HasField("logprob") else None,
            num_bytes=message.num_bytes,
            blend=message.blend,
            blend_revision=message.blend_revision,
        )


@dataclass(frozen=True, slots=True)
class TokenCount:
    """An input's length for one member."""

    num_tokens: int
    max_context: int  # tokens, prompt and reply together


@dataclass(frozen=True, slots=True)
class BlendMember:
    """A member as a blend uses it."""

    name: str
    weight: float
    role: str
    model: str
    max_context: int  # tokens
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Blend:
    """Several members served as one model."""

    name: str
    description: str
    method: str
    rule: str
    members: tuple[BlendMember, ...]
    revision: str
    max_tokens: int
    parameters: Mapping[str, float]

    @classmethod
    def of(cls, message: blend_pb2.Blend) -> Blend:
        """From the wire."""
        members = tuple(
            BlendMember(m.name, m.weight, m.role, m.model, m.max_context, m.has_chat_template)
            for m in message.members
        )
        return cls(
            name=message.name,
            description=message.description,
            method=message.method,
            rule=message.rule,
            members=members,
            revision=message.revision,
            max_tokens=message.max_tokens,
            parameters=dict(message.parameters),
        )


def counts_of(message: pb.CountTokensResponse) -> dict[str, TokenCount]:
    """From the wire, by member."""
    return {m.member: TokenCount(m.num_tokens, m.max_context) for m in message.members}


def _tokens(message: pb.MemberScore) -> tuple[TokenScore, ...]:
    return tuple(TokenScore(token.bytes, token.logprob) for token in message.tokens)
