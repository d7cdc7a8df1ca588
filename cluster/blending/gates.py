"""Gates: who is to speak, decided from a prompt or from a member's hidden state.

A gate gives each member a logit; the best `top` of them speak, weighted by a softmax over just
these (Mixtral's rule, 2401.04088, equation 1, one level up). A member's weight in the blend is its
prior, and a price per unit of cost makes the cheaper of two alike members win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """How logits become weights."""

    prior: Sequence[float]  # by member; 0: never
    top: int  # how many members share the word
    costs: Sequence[float]  # by member, in any unit
    price: float = 0.0  # logits per unit of cost

    def weights(self, logits: Sequence[float] | Vector) -> list[float]:
        """The members' shares, summing to 1; at most `top` are above 0, the first ones on ties."""
        prior = np.asarray(self.prior, dtype=np.float64)
        logs = np.log(prior, where=prior > 0, out=np.full_like(prior, -np.inf))
        scores = np.asarray(logits, np.float64) + logs - self.price * np.asarray(self.costs)
        kept = np.argsort(-scores, kind="stable")[: self.top]
        shares = np.zeros_like(prior)
        shares[kept] = np.exp(scores[kept] - scores[kept[0]])
        return [float(share) for share in shares / shares.sum()]


@dataclass(frozen=True)
class Network:
    """A linear gate, or one with a hidden layer of rectified units."""

    layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]  # weights [out, in], bias

    @property
    def num_features(self) -> int:
        """How many numbers it reads."""
        return int(self.layers[0][0].shape[1])

    def logits(self, features: NDArray[np.floating] | Sequence[float]) -> Vector:
        """One logit per member."""
        values: Vector = np.asarray(features, dtype=np.float64)
        for number, (weights, bias) in enumerate(self.layers):
            if number:
                values = np.maximum(values, 0.0)
            values = np.dot(weights, values) + bias
        return values


def by_keywords(rules: Sequence[tuple[str, str]], otherwise: str, text: str) -> str:
    """The member of the first rule whose pattern is found in the text."""
    found = (name for pattern, name in rules if re.search(pattern, text))
    return next(found, otherwise)


def by_examples(
    prompt: NDArray[np.floating], examples: Mapping[str, NDArray[np.floating]], sharpness: float
) -> dict[str, float]:
    """Each member's logit: how like the prompt is to the nearest of its examples.

    `prompt`: [d], `examples`: [n, d] by member, all of length 1.
    """
    near = {name: float(np.max(vectors @ prompt)) for name, vectors in examples.items()}
    return {name: sharpness * cosine for name, cosine in near.items()}
