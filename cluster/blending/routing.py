"""`route`: a gate decides at the beginning of each span who speaks it.

`Cascade`: one member speaks, and where it is not sure, the span is another's. `Routed`: a learned
gate reads a member's hidden state and weighs all; one of its top is drawn, which in law is the
weighted mean of them at the cost of one. Gates that read the prompt alone need no class of their
own: they weigh a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from cluster.blending.base import Run, Span
from cluster.blending.gates import Choice, Network
from cluster.blending.mixture import BORDERS, Mixture
from cluster.distribution import Logprobs
from cluster.text.borders import Border

_NOT_ON = (0.0, 0.0)  # at a border, no draw makes the run go on
_ALWAYS_ON = (0.0, 1.0)


@dataclass
class Cascade:
    """The first member speaks; spans that it is not sure of are drawn from the others.

    The measure is of its own distribution, before temperature, at a span's first token.
    """

    weights: Sequence[float]  # of the others, with the first one's 0
    first: int
    span: Span
    seed: int
    measure: Literal["confidence", "entropy"]
    threshold: float
    _doubted: int = field(default=-1, repr=False)  # position that the first handed over

    @property
    def speakers(self) -> tuple[int, ...]:
        """All of them: nobody knows ahead what is not sure."""
        return tuple(i for i, weight in enumerate(self.weights) if weight > 0 or i == self.first)

    @property
    def span_tokens(self) -> int:
        """The span's length, 0 where it has none."""
        return 1 if self.span == "token" else self.span if isinstance(self.span, int) else 0

    def weights_after(self, logprobs: Logprobs) -> list[float]:
        """Who would speak a span that begins where the first member expects this, [vocabulary]."""
        p = np.exp(logprobs)
        is_sure = float(p.max()) >= self.threshold
        if self.measure == "entropy":
            is_sure = float(-(p * np.where(p > 0, logprobs, 0.0)).sum()) <= self.threshold
        if is_sure:
            return [float(index == self.first) for index in range(len(self.weights))]
        total = math.fsum(self.weights)
        return [weight / total for weight in self.weights]

    def doubt(self, position: int) -> None:
        """The first member was not sure of the span that begins here."""
        self._doubted = position

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """The first one's spans for as long as it is sure, or one span by another."""
        border = BORDERS.get(self.span, Border.NONE) if isinstance(self.span, str) else Border.NONE
        retake = dropped and border is not Border.NONE
        if position != self._doubted:
            return Run(self.first, position, max_tokens, border, _ALWAYS_ON, retake)
        other = Mixture(self.weights, "token", self.seed).speaker(position)
        length = min(self.span_tokens or max_tokens, max_tokens)
        return Run(other, position, length, border, _NOT_ON, retake)


@dataclass
class Routed:
    """Each span by one member, drawn by weights that a gate finds in a member's hidden state."""

    mixture: Mixture  # its weights are the prior
    network: Network
    choice: Choice
    reader: int  # whose hidden state is read
    _decided: tuple[int, list[float]] = field(default=(-1, []), repr=False)
    _followed: tuple[int, int] = field(default=(-1, 0), repr=False)  # position, member

    @property
    def speakers(self) -> tuple[int, ...]:
        """Members with a positive prior, and the one that is read."""
        speakers = tuple(i for i, weight in enumerate(self.mixture.weights) if weight > 0)
        return tuple(sorted({*speakers, self.reader}))

    def is_decided(self, position: int) -> bool:
        """Whether the gate has read what comes before the position, or need not."""
        decided = self._decided[0]
        return decided == position or (decided >= 0 and self.mixture.span == "response")

    def decide(self, position: int, state: Sequence[float]) -> None:
        """The reader's hidden state after all tokens before the position."""
        self._decided = position, self.weights_after(state)

    def follow(self, position: int, member: int, weights: Sequence[float]) -> None:
        """It is known who speaks the span that begins here, and by which weights, if they are."""
        self._followed = position, member
        self._decided = position, list(weights)

    def weights_after(self, state: Sequence[float]) -> list[float]:
        """What the gate makes of a hidden state."""
        return self.choice.weights(self.network.logits(state))

    def weights(self) -> list[float]:
        """The members' shares at the last decision; empty before the first, or not known."""
        return self._decided[1]

    def drawn(self) -> tuple[int, ...]:
        """Who speaks the span that was decided last."""
        position, weights = self._decided
        if self._followed[0] == position:
            return (self._followed[1],)
        return (replace(self.mixture, weights=weights).speaker(position),)

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """One span: who speaks the next is not known yet."""
        (member,), span = self.drawn(), self.mixture.span
        if span == "response":
            return Run(member, position, max_tokens, Border.NONE, _ALWAYS_ON, False)
        assert self.is_decided(position), "a gate is asked before each span"
        if isinstance(span, str) and span in BORDERS:
            return Run(member, position, max_tokens, BORDERS[span], _NOT_ON, dropped)
        length = 1 if span == "token" else int(span)
        return Run(member, position, min(length, max_tokens), Border.NONE, _ALWAYS_ON, dropped)
