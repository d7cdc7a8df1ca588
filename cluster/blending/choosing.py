"""Which of several whole replies is best. Scores are higher for better ones; ties go to the first.

Reward models are best of n, WARM-averaged ones (2401.12187) included; pairs are ranked as in
LLM-Blender (2306.02561); votes are self-consistency (2203.11171) over members.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def by_likelihood(logprobs: Scores, num_bytes: Sequence[int], weights: Sequence[float]) -> Scores:
    """Σ λᵢ log pᵢ(reply) per byte of the reply, in nats; an empty reply is the worst.

    `logprobs`: [replies, members].
    """
    lengths = np.asarray(num_bytes, dtype=np.float64)
    means = np.dot(logprobs, np.asarray(weights)) / np.maximum(lengths, 1)
    return np.asarray(np.where(lengths > 0, means, -np.inf), dtype=np.float64)


def by_consensus(embeddings: NDArray[np.floating], weights: Sequence[float]) -> Scores:
    """How alike each reply is to the others: the mean cosine with them, weighted by theirs.

    `embeddings`: [replies, d], each of length 1; `weights`: [replies], positive.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    shares = np.asarray(weights, dtype=np.float64)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, 0.0)
    others = shares.sum() - shares
    means = np.dot(alike, shares) / np.where(others > 0, others, 1.0)
    return np.array(means, dtype=np.float64)


def by_pairs(margins: NDArray[np.floating]) -> Scores:
    """The mean log-odds of winning against the others. `margins`: [replies, replies]."""
    sums: Scores = np.asarray(margins, dtype=np.float64).sum(axis=1)
    return sums / max(len(margins) - 1, 1)


def extracted(pattern: str, reply: str) -> str | None:
    """A reply's answer: the pattern's last match, or that match's group; None without one.

    Case and the width of white space do not count.
    """
    *_, found = (None, *re.finditer(pattern, reply))
    if found is None:
        return None
    answer = found.group(found.re.groups) or ""
    return " ".join(answer.split()).casefold() or None


def by_vote(answers: Sequence[str | None], weights: Sequence[float]) -> Scores:
    """Each reply's answer's share of all votes cast; a reply without an answer casts none."""
    cast: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            cast[answer] = cast.get(answer, 0.0) + weight
    total = sum(cast.values())
    return np.array([cast[a] / total if a is not None else 0.0 for a in answers])
