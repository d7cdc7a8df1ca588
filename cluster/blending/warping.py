"""Temperature and truncation of a combined distribution, and a draw from it, in float64.

The law is that of the engine's sampler: temperature, top-k, top-p, min-p, ties kept together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.distribution import Ids, Logprobs
from cluster.randomness import GOLDEN, MIX_1, MIX_2

_WORD = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Warp:
    """The sampling of a request; the meaning is `SamplingParams`'s."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def is_greedy(self) -> bool:
        """Whether the best is taken, lowest id on ties, and truncation ignored."""
        return self.temperature <= 0


def warped(logprobs: Logprobs, warp: Warp) -> Logprobs:
    """Normalised log-probabilities [n] under the law; -inf for what is cut off."""
    if warp.is_greedy:
        one_hot = np.full_like(logprobs, -np.inf)
        one_hot[np.argmax(logprobs)] = 0.0
        return one_hot
    logits = (logprobs - logprobs.max()) / max(warp.temperature, 1e-20)
    if 0 < warp.top_k < len(logits):
        logits = _kept(logits, np.partition(logits, -warp.top_k)[-warp.top_k])
    if warp.top_p < 1:
        best_first = np.sort(logits)[::-1]
        mass = np.cumsum(np.exp(best_first))
        logits = _kept(logits, best_first[np.searchsorted(mass, warp.top_p * mass[-1])])
    if warp.min_p > 0:
        logits = _kept(logits, logits.max() + np.log(warp.min_p))
    return log_normalised(logits)


def log_normalised(logits: Logprobs) -> Logprobs:
    """Log-softmax; -inf stays."""
    shifted: Logprobs = logits - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def draw(ids: Ids, logprobs: Logprobs, key: int) -> int:
    """The index of the winner of an exponential race; an id's number depends on (key, id) alone.

    So a draw changes only where two ids are nearly tied, as in the engine's sampler.
    """
    with np.errstate(over="ignore"):
        bits = np.uint64(key & _WORD) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(MIX_1)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(MIX_2)
    bits ^= bits >> np.uint64(31)
    uniforms = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return int(np.argmax(logprobs - np.log(-np.log(uniforms))))


def _kept(logits: Logprobs, cutoff: float) -> Logprobs:
    return np.where(logits >= cutoff, logits, -np.inf)
