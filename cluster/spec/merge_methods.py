"""Which merge methods there are, and which parameters each has; the rules are in `cluster.merging`.

Knows no tensors: a blend file is checked without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cluster.spec.settings import Scalar


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: what it is where nobody says, and what it may be."""

    default: Scalar
    per_model: bool = False  # each model of the recipe may have its own
    low: float = -math.inf
    high: float = math.inf
    words: tuple[str, ...] = ()  # the only values of a parameter that is a word

    def accepts(self, value: Scalar) -> bool:
        if self.words:
            return value in self.words
        if isinstance(self.default, bool) or isinstance(value, bool | str):
            return isinstance(value, bool) and isinstance(self.default, bool)
        return math.isfinite(value) and self.low <= value <= self.high

    @property
    def expected(self) -> str:
        if self.words:
            return f"one of {', '.join(self.words)}"
        if isinstance(self.default, bool):
            return "true or false"
        if math.isinf(self.high):
            return "a number" if math.isinf(self.low) else f"a number of at least {self.low:g}"
        return f"a number between {self.low:g} and {self.high:g}"


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """What a recipe of one method may say."""

    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    base: Literal["none", "optional", "required"] = "none"
    max_models: int | None = None  # of one slice, the base not counted


_WEIGHT = Parameter(1.0, per_model=True)
_DENSITY = Parameter(1.0, per_model=True, low=0, high=1)
_LAMBDA = {"lambda": Parameter(1.0)}
_DELTAS = {"weight": _WEIGHT, "normalize": Parameter(False), **_LAMBDA}
_DARE = {**_DELTAS, "density": _DENSITY, "rescale": Parameter(True)}
COMBINATIONS = (  # of adapters, as peft's `add_weighted_adapter` calls them
    "linear",
    "cat",
    "svd",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_ties",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)

MERGE_METHODS: Mapping[str, MethodFacts] = {
    "linear": MethodFacts({"weight": _WEIGHT, "normalize": Parameter(True)}, base="optional"),
    "ema": MethodFacts({"decay": Parameter(0.9, low=0, high=1)}, base="optional"),
    "lawa": MethodFacts({"window": Parameter(5.0, low=1)}, base="optional"),
    "slerp": MethodFacts(
        {
            "t": Parameter(0.5, low=0, high=1),
            "weight": _WEIGHT,
            "mean": Parameter("repeated", words=("repeated", "spherical")),
        },
        base="optional",
    ),
    "task_arithmetic": MethodFacts(_DELTAS, base="required"),
    "ties": MethodFacts(
        {**_DELTAS, "normalize": Parameter(True), "density": _DENSITY}, base="required"
    ),
    "dare_linear": MethodFacts(_DARE, base="required"),
    "dare_ties": MethodFacts(_DARE, base="required"),
    "passthrough": MethodFacts({"scale": Parameter(1.0, per_model=True)}, max_models=1),
    "lora": MethodFacts(
        {
            "weight": _WEIGHT,
            "combination": Parameter("linear", words=COMBINATIONS),
            "density": Parameter(0.5, low=0, high=1),
            "rank": Parameter(0.0, low=0),
        },
        base="required",
    ),
    "mergekit": MethodFacts(),
}
