"""What a method may ask of the coordinator: members take turns, or all take part in each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from cluster.distribution import Distribution, Ids, Logprobs
from cluster.text.borders import Border

Span = int | Literal["token", "word", "sentence", "response"]


@dataclass(frozen=True, slots=True)
class Run:
    """One member speaks; it goes out as one step."""

    member: int  # index into the blend's members
    position: int  # the number in the reply of the run's first token
    max_tokens: int
    border: Border  # where another member may take over; NONE: only after max_tokens
    share: tuple[float, float]  # the speaker draws for which the run goes on at a border
    retake: bool  # the first token replaces one dropped at a border


@dataclass(frozen=True, slots=True)
class Ask:
    """What one member is asked to tell of the next token's distribution."""

    num_top: int  # how many likeliest ids; 0: all
    ids: tuple[int, ...] = ()  # these too
    is_warped: bool = False  # under the request's sampling; else the model's own


class Rule(Protocol):
    """How the distributions of all members become one; nothing is kept between tokens."""

    def first_asks(self) -> list[Ask]:
        """What to ask of each member at each token."""

    def more_asks(self, told: Sequence[Distribution]) -> list[Ask | None]:
        """What to ask next of each member, knowing this much; nothing at last."""

    def combine(self, told: Sequence[Distribution]) -> Combined:
        """The distribution that the token is drawn from."""


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """What the members make of the next token together."""

    ids: Ids
    logprobs: Logprobs  # [ids], normalised; the token is drawn from these
    shares: Logprobs  # [members, ids]: how much each has to do with an id; columns sum to 1
    bound: float = 0.0  # total variation between this and the exact distribution, at most
    told: tuple[Distribution, ...] = ()  # what it was made of

    def logprob_of(self, id: int) -> float:
        """The log-probability of one id; -inf for one that is not among them."""
        at = np.flatnonzero(self.ids == id)
        return float(self.logprobs[at[0]]) if len(at) else -np.inf


@runtime_checkable
class Learner(Protocol):
    """A rule whose weights follow the transcript."""

    def learn(self, told: Sequence[Distribution], id: int) -> None:
        """The id was drawn where members told this."""


@dataclass(frozen=True, slots=True)
class Together:
    """Every token by all members at once."""

    speakers: tuple[int, ...]  # indices into the blend's members, in the rule's order
    rule: Rule


class Method(Protocol):
    """A rule by which members take turns, set up for one reply."""

    @property
    def speakers(self) -> tuple[int, ...]:
        """Indices of the members that this reply may need, ascending."""

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """Who speaks from `position`, and how far.

        `dropped`: the last run ended at a border with its member's next token dropped there.
        """
