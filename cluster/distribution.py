"""A distribution over token ids, as one member tells it to the router: all of it, or a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Logprobs: TypeAlias = NDArray[np.float64]

LEAST_REST = float(np.finfo(np.float64).tiny)  # of a part, however much of the whole it rounds to


@dataclass(frozen=True, slots=True, eq=False)
class Distribution:
    """Log-probabilities [n] of some ids [n], ascending; `rest` is all other ids' probability.

    It is 0 if and only if no other id is possible: what is told may round to 1 before it is all.
    """

    ids: Ids
    logprobs: Logprobs
    rest: float = 0.0
    dropped: float = 0.0  # of a law over bytes: shares of splits left out so far, summed

    def of(self, ids: Ids) -> Logprobs:
        """Log-probabilities of any ids; -inf for those that are not told."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, self.logprobs[at], -np.inf)

    def lacks(self, ids: Ids) -> Ids:
        """Those of the ids that may have a probability but are not told."""
        return ids[:0] if self.rest == 0 else np.setdiff1d(ids, self.ids, assume_unique=True)

    def rest_outside(self, ids: Ids) -> float:
        """The probability of all ids but these, so far as they are told."""
        at = np.minimum(np.searchsorted(ids, self.ids), len(ids) - 1)
        return self.rest + float(np.exp(self.logprobs[ids[at] != self.ids]).sum())

    def part(self, num_top: int, ids: Sequence[int] | Ids) -> Distribution:
        """Of all of it: the likeliest ids (0: all), those asked for, and how much is left."""
        if not 0 < num_top < len(self.ids):
            return self
        if num_top == 1:
            best = np.array([self.logprobs.argmax()])
        else:
            best = np.argpartition(self.logprobs, -num_top)[-num_top:]
        told = np.union1d(self.ids[best], np.asarray(ids, dtype=np.int64))
        logprobs = self.of(told)
        is_all = int((logprobs > -np.inf).sum()) == len(self.ids)
        rest = 0.0 if is_all else max(LEAST_REST, 1.0 - float(np.exp(logprobs).sum()))
        return Distribution(told, logprobs, rest)

    def merged(self, other: Distribution) -> Distribution:
        """With what was told later of the same distribution."""
        if self.rest == 0 or other.rest == 0:
            return self if self.rest == 0 else other
        ids = np.union1d(self.ids, other.ids)
        logprobs = np.maximum(self.of(ids), other.of(ids))
        total = other.rest + float(np.exp(other.logprobs).sum())
        return Distribution(ids, logprobs, max(LEAST_REST, total - float(np.exp(logprobs).sum())))
