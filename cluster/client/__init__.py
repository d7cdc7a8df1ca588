"""Cuvée for Python programs: replies, streams, scores, and counts from a running cluster.

`Client` blocks, `AsyncClient` awaits; they are alike in all else. A reply that has begun outlives
the router that began it: the client asks for the rest and goes on. Needs grpc and protobuf alone.
"""

from cluster.client.asynchronous import AsyncClient, AsyncStream
from cluster.client.blocking import Client, Stream
from cluster.client.options import Message, Options, ScoreOptions
from cluster.client.patience import Patience
from cluster.client.replies import (
    Candidate,
    MemberUsage,
    Outcome,
    Piece,
    Proposal,
    Reply,
    Token,
    Usage,
)
from cluster.client.served import Blend, BlendMember, MemberScore, Score, TokenCount, TokenScore

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Blend",
    "BlendMember",
    "Candidate",
    "Client",
    "MemberScore",
    "MemberUsage",
    "Message",
    "Options",
    "Outcome",
    "Patience",
    "Piece",
    "Proposal",
    "Reply",
    "Score",
    "ScoreOptions",
    "Stream",
    "Token",
    "TokenCount",
    "TokenScore",
    "Usage",
]
