"""What a method may ask of the coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

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


class Method(Protocol):
    """A blending rule, set up for one reply."""

    @property
    def speakers(self) -> tuple[int, ...]:
        """Indices of the members that this reply may need, ascending."""

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """Who speaks from `position`, and how far.

        `dropped`: the last run ended at a border with its member's next token dropped there.
        """
