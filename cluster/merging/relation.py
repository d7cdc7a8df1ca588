"""How related the models of a merge are, from a sample of their weights.

Weights of one ancestor stay close to it, and so to each other: cosines above 0.9. Networks trained
from different starts have cosines near 0 although they do the same, because their hidden units are
in another order; their average does nothing. Changes from the ancestor, compared with each other,
say how alike what was learned is: near 0, different things; near 1, the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

UNRELATED = 0.5  # a cosine of weights below which a warning is due

_SAMPLE = 1 << 16  # elements of each matrix: more would change nothing that matters


@dataclass(frozen=True, slots=True)
class Relation:
    """Cosines, by the models' names."""

    reference: str  # the ancestor, or the first model
    weights: dict[str, float]  # of each other model, to the reference
    changes: dict[tuple[str, str], float]  # of each two models, their differences from the ancestor


class Relating:
    """Gathers inner products while tensors pass by."""

    def __init__(self) -> None:
        self._products: defaultdict[tuple[str, str], float] = defaultdict(float)

    def see(self, models: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """One tensor of each; those of less than two dimensions say little and are left out."""
        if tensors[0].dim() < 2 or not tensors[0].dtype.is_floating_point:
            return
        rows = torch.stack([tensor.reshape(-1)[:_SAMPLE] for tensor in tensors]).double()
        products = (rows @ rows.T).tolist()
        for at, one in enumerate(models):
            for place, other in enumerate(models):
                self._products[one, other] += products[at][place]

    def found(self, base: str | None) -> Relation | None:
        """What was seen; None where no two models were seen together."""
        models = list(dict.fromkeys(one for one, _ in self._products))
        if len(models) < 2:
            return None
        reference = base if base in models else models[0]
        others = [model for model in models if model != reference]
        weights = {
            m: self._cosine(m, reference) for m in others if (m, reference) in self._products
        }
        changes: dict[tuple[str, str], float] = {}
        if reference == base:
            pairs = (p for p in combinations(others, 2) if p in self._products)
            changes = {pair: self._cosine_of_changes(*pair, reference) for pair in pairs}
        return Relation(reference, weights, changes)

    def _cosine(self, one: str, other: str) -> float:
        return _cosine(
            self._products[one, other], self._products[one, one], self._products[other, other]
        )

    def _cosine_of_changes(self, one: str, other: str, base: str) -> float:
        def product(a: str, b: str) -> float:
            both = self._products[a, b] + self._products[base, base]
            return both - self._products[a, base] - self._products[b, base]

        return _cosine(product(one, other), product(one, one), product(other, other))


def warnings_about(relation: Relation | None, *, has_ancestor: bool) -> list[str]:
    """What a person should know before believing in this merge."""
    if relation is None:
        return []
    found = []
    if not has_ancestor:
        found.append(
            "no common ancestor is declared (base_model): weights can be averaged only where all "
            "models were tuned from one; of others the average is noise"
        )
    found += [
        f"{model} and {relation.reference} look unrelated (cosine of weights {cosine:.2f}; tuned "
        "from one ancestor it is above 0.9): their hidden units need not mean the same, and what "
        "is merged may well be worse than either; blend their predictions instead"
        for model, cosine in relation.weights.items()
        if cosine < UNRELATED
    ]
    return found


def _cosine(product: float, one: float, other: float) -> float:
    lengths = math.sqrt(max(one, 0) * max(other, 0))
    return product / lengths if lengths > 0 else 1.0
