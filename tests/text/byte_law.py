"""Laws over bytes as a plain sum over all token sequences, and how to answer a walk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from cluster.distribution import Distribution
from cluster.text.bytewise import END, NUM_SYMBOLS, ByteWalk

Law = Callable[[tuple[int, ...]], np.ndarray]  # log-probabilities of the token after these


def followed(walk: ByteWalk, text: bytes, law: Law) -> Distribution:
    """What comes of a walk whose questions the law answers."""
    asks, answer = walk.follow(text), None
    while True:
        try:
            answer = law(next(asks) if answer is None else asks.send(answer))
        except StopIteration as done:
            found: Distribution = done.value
            return found


def byte_law(
    token_bytes: Sequence[bytes], end_ids: Collection[int], law: Law, text: bytes
) -> np.ndarray:
    """By symbol: the probability that it follows the text; no token of the law spells nothing."""
    found = _reach(token_bytes, end_ids, law, text, ())
    return np.asarray(found / found.sum())


def _reach(
    token_bytes: Sequence[bytes],
    end_ids: Collection[int],
    law: Law,
    text: bytes,
    ids: tuple[int, ...],
) -> np.ndarray:
    """By symbol: the probability of the text and then it, after these tokens."""
    found = np.zeros(NUM_SYMBOLS)
    probs = np.exp(law(ids))
    kept = [i for i, data in enumerate(token_bytes) if data or i in end_ids]
    probs /= probs[kept].sum()
    for token in kept:
        data = token_bytes[token]
        if token in end_ids:
            found[END] += 0.0 if text else probs[token]
        elif len(data) > len(text):
            if data.startswith(text):
                found[data[len(text)]] += probs[token]
        elif text.startswith(data):
            rest = text[len(data) :]
            found += probs[token] * _reach(token_bytes, end_ids, law, rest, (*ids, token))
    return found
