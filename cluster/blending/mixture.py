"""`mixture`: each span of the reply is spoken by one member, drawn by weight.

Span `response` is Blending Is All You Need (2401.02994); span `token` is ME (2605.00419), equal in
law to the mixture Σ λᵢ pᵢ at one forward pass per token; spans between them are n tokens, words and
sentences. The speaker of the span that begins at position t is fixed by (seed, t) alone, so the
schedule is known ahead and consecutive spans of one member are one run.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from cluster.blending.base import Run, Span
from cluster.randomness import Purpose, uniform
from cluster.text.borders import Border

BORDERS = {"word": Border.WORD, "sentence": Border.SENTENCE}


@dataclass(frozen=True)
class Mixture:
    """The schedule of one reply. Weights are at least 0 with a positive sum."""

    weights: Sequence[float]
    span: Span
    seed: int
    _bounds: list[float] = field(init=False, repr=False)  # cumulative shares; the last one is 1

    def __post_init__(self) -> None:
        total = math.fsum(self.weights)
        bounds = [cumulative / total for cumulative in accumulate(self.weights)]
        last = max(index for index, weight in enumerate(self.weights) if weight > 0)
        bounds[last:] = [1.0] * (len(bounds) - last)  # rounding must not leave a gap at the end
        object.__setattr__(self, "_bounds", bounds)

    @property
    def speakers(self) -> tuple[int, ...]:
        """Members with a positive weight; for span `response` the one drawn."""
        if self.span == "response":
            return (self.speaker(0),)
        return tuple(index for index, weight in enumerate(self.weights) if weight > 0)

    def speaker(self, position: int) -> int:
        """The member that speaks the span beginning at `position`."""
        return bisect_right(self._bounds, uniform(self.seed, Purpose.SPEAKER, position))

    def next_run(self, position: int, max_tokens: int, *, dropped: bool) -> Run:
        """The run of spans from `position` that one member speaks."""
        if self.span == "response":
            return Run(self.speaker(0), position, max_tokens, Border.NONE, (0.0, 1.0), False)
        member = self.speaker(position)
        if isinstance(self.span, str) and self.span in BORDERS:
            share = (self._bounds[member - 1] if member else 0.0, self._bounds[member])
            return Run(member, position, max_tokens, BORDERS[self.span], share, dropped)
        length = span = 1 if self.span == "token" else int(self.span)
        while length < max_tokens and self.speaker(position + length) == member:
            length += span
        length = min(length, max_tokens)
        return Run(member, position, length, Border.NONE, (0.0, 1.0), dropped)
