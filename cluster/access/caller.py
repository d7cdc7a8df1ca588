"""Who calls: known from the edge's authentication to everything that runs for the call."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """What a key may be used for."""

    GENERATE = "generate"  # replies, scores, token counts, and what blends there are
    ADMIN = "admin"  # how the cluster is, and changes to it
    METRICS = "metrics"  # numbers alone


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much one key may ask for; None: no limit of its own."""

    max_concurrent: int | None = None  # generations under way or waiting, per router
    cost_per_minute: float | None = None  # a token that a member processes costs its `cost`
    weight: float = 1.0  # its share of a full router, against other keys


@dataclass(frozen=True, slots=True)
class Caller:
    """A key's holder, or anybody where no keys are asked for."""

    key_id: str = ""  # public: it may stand in logs; empty for anybody
    scopes: frozenset[Scope] = frozenset(Scope)
    limits: KeyLimits = KeyLimits()


ANYBODY = Caller()

current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANYBODY)
