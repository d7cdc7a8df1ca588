"""A number of a merge recipe that may differ by layer and by tensor, as mergekit's files write it.

weight: 0.5                                   the same everywhere
t: [0, 0.5, 1]                                a gradient over the layers, linear in between
t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]    the first whose filter is in the tensor's name
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from cluster.spec.values import refuse

Scalar = float | bool | str

_EXPECTED = (
    "expected a number, true or false, a word, a list of numbers (a gradient over the layers), or "
    "a list of {filter: part of a tensor's name, value: …}"
)


@dataclass(frozen=True, slots=True)
class Case:
    """A value for the tensors whose names contain `part`; the empty part is in all of them."""

    part: str
    value: Scalar | tuple[float, ...]

    def at(self, depth: float) -> Scalar:
        """The value at a depth between 0, the first layer, and 1, the last."""
        if not isinstance(self.value, tuple):
            return self.value
        place = depth * (len(self.value) - 1)
        low = min(int(place), len(self.value) - 1)
        high = min(low + 1, len(self.value) - 1)
        share = place - low
        return (1 - share) * self.value[low] + share * self.value[high]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe says of one parameter."""

    cases: tuple[Case, ...]

    @classmethod
    def parse(cls, given: object) -> Setting:
        """Read plain data; refuses what is none of the three forms."""
        if isinstance(given, Setting):
            return given
        if isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
            return cls(tuple(map(_case, given)))
        return cls((Case("", _value(given)),))

    def at(self, tensor: str, depth: float) -> Scalar | None:
        """What holds for a tensor; None where no filter is in its name."""
        found = next((case for case in self.cases if case.part in tensor), None)
        return None if found is None else found.at(depth)

    @property
    def is_constant(self) -> bool:
        """Whether it holds for all layers and tensors."""
        return not self.cases[0].part and not isinstance(self.cases[0].value, tuple)

    def scalars(self) -> Iterator[Scalar]:
        """Every value that is written in it."""
        for case in self.cases:
            yield from case.value if isinstance(case.value, tuple) else (case.value,)

    def plain(self) -> Any:
        """As it was written."""
        values = [list(c.value) if isinstance(c.value, tuple) else c.value for c in self.cases]
        if len(self.cases) == 1 and not self.cases[0].part:
            return values[0]
        pairs = zip(self.cases, values, strict=True)
        return [{"filter": case.part or "*", "value": value} for case, value in pairs]


def _case(given: object) -> Case:
    if not isinstance(given, Mapping) or "value" not in given or set(given) - {"filter", "value"}:
        raise refuse(_EXPECTED)
    part = given.get("filter")
    if not isinstance(part, str | None):
        raise refuse(_EXPECTED)
    return Case("" if part in (None, "*") else part, _value(given["value"]))


def _value(given: object) -> Scalar | tuple[float, ...]:
    if isinstance(given, list | tuple) and given:
        if all(isinstance(part, int | float) and not isinstance(part, bool) for part in given):
            return tuple(map(float, given))
    elif isinstance(given, bool | str):
        return given
    elif isinstance(given, int | float):
        return float(given)
    raise refuse(_EXPECTED)


SettingField = Annotated[
    Setting, PlainValidator(Setting.parse), PlainSerializer(Setting.plain, return_type=Any)
]
