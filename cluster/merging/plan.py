"""What each tensor of the result is made of, decided from names and shapes alone.

Layers of the result are numbered anew, part after part. What lies before the layers comes from the
sources of the first part, what lies after them from those of the last; of a gradient both have the
first value, as in mergekit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from cluster.errors import Unsupported
from cluster.merging.checkpoint import Checkpoint, Entry
from cluster.merging.layers import is_before_layers
from cluster.merging.methods import Settings, positive_sum
from cluster.merging.parts import ModelKey, Part, Source, parts_of
from cluster.spec.recipe import RecipeSpec
from cluster.spec.settings import Scalar, Setting

_RESULT_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FIELDS = {"lambda": "factor"}  # of `Settings`, where they are called otherwise


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of one of the inputs."""

    model: ModelKey
    tensor: str


@dataclass(frozen=True, slots=True)
class Step:
    """How one tensor of the result is made."""

    name: str
    entry: Entry  # of the first operand: its shape, and its type where no other is asked for
    dtype: torch.dtype
    operands: tuple[Operand, ...]
    base: Operand | None
    settings: Settings

    @property
    def num_bytes(self) -> int:
        return self.entry.num_bytes // self.entry.dtype.itemsize * self.dtype.itemsize

    @property
    def read(self) -> tuple[Operand, ...]:
        """All that is read for it."""
        return self.operands if self.base is None else (*self.operands, self.base)


@dataclass(frozen=True, slots=True)
class Plan:
    """All tensors of the result in the order they are written, and where its layers come from."""

    steps: tuple[Step, ...]
    layers: tuple[tuple[ModelKey, int], ...]  # by layer, of the first source
    num_source_layers: int  # that the first model has

    @property
    def num_bytes(self) -> int:
        return sum(step.num_bytes for step in self.steps)

    @property
    def num_bytes_read(self) -> int:
        return sum(step.entry.num_bytes * len(step.read) for step in self.steps)


def plan_merge(
    recipe: RecipeSpec, checkpoints: Mapping[ModelKey, Checkpoint], dropped: frozenset[str]
) -> Plan:
    """Decide every tensor; raises Unsupported or InvalidRequest naming what does not fit.

    `dropped` are tensors that the result does not store, since they are tied to others.
    """
    parts = list(parts_of(recipe, checkpoints, dropped))
    first, last = parts[0], parts[-1]
    plan = _Steps(recipe, checkpoints)
    steps = [
        plan.step(name, first, dict.fromkeys(range(len(first.sources)), name), 0.0)
        for name in _names(first, [source.outside() for source in first.sources])
        if is_before_layers(name)
    ]
    layers: list[tuple[ModelKey, int]] = []
    for part in parts:
        for offset in range(part.num_layers):
            steps += plan.layer(part, offset, len(layers))
            layers.append((part.sources[0].key, part.sources[0].begin + offset))
    steps += [
        plan.step(name, last, dict.fromkeys(range(len(last.sources)), name), 0.0)
        for name in _names(last, [source.outside() for source in last.sources])
        if not is_before_layers(name)
    ]
    return Plan(tuple(steps), tuple(layers), len(first.sources[0].layout.layers))


@dataclass(frozen=True, slots=True)
class _Steps:
    """One recipe over its checkpoints."""

    recipe: RecipeSpec
    checkpoints: Mapping[ModelKey, Checkpoint]

    def layer(self, part: Part, offset: int, number: int) -> Iterator[Step]:
        """The steps of one layer of the part, which becomes layer `number`."""
        tensors = [source.layer(offset) for source in part.sources]
        depth = offset / (part.num_layers - 1) if part.num_layers > 1 else 1.0
        layout = part.sources[0].layout
        for suffix in _names(part, tensors, of=f" of layer {part.sources[0].begin + offset}"):
            names = {at: theirs[suffix] for at, theirs in enumerate(tensors)}
            yield self.step(layout.name(number, suffix), part, names, depth)

    def step(self, name: str, part: Part, names: Mapping[int, str], depth: float) -> Step:
        """One tensor; `names` is what each source calls it."""
        operands = [Operand(s.key, names[at]) for at, s in enumerate(part.sources)]
        entries = [self.checkpoints[o.model].entries[o.tensor] for o in operands]
        _check_alike(name, part.sources, entries)
        order = list(range(len(operands)))
        base = None
        if part.base is not None:
            order.remove(part.base)
            if self.recipe.has_t:  # which counts from the base on
                order.insert(0, part.base)
            else:
                base = operands[part.base]
        entry = entries[order[0]]
        dtype = _RESULT_DTYPES.get(self.recipe.result_dtype or "", entry.dtype)
        return Step(
            name,
            entry,
            dtype if entry.dtype.is_floating_point else entry.dtype,
            tuple(operands[at] for at in order),
            base,
            self._settings(name, part, [part.sources[at] for at in order], depth),
        )

    def _settings(self, name: str, part: Part, sources: Sequence[Source], depth: float) -> Settings:
        """This tensor's parameters: the source's own, else the slice's, else the recipe's."""
        found: dict[str, Scalar | tuple[Scalar, ...]] = {"seed": self.recipe.seed}
        chain = (part.parameters, self.recipe.parameters)
        for parameter, facts in self.recipe.facts.parameters.items():
            field = _FIELDS.get(parameter, parameter)
            if facts.per_model:
                found[field] = tuple(
                    _value(parameter, (source.parameters or {}, *chain), name, depth, facts.default)
                    for source in sources
                )
            elif parameter != "t" or self.recipe.has_t:
                found[field] = _value(parameter, chain, name, depth, facts.default)
        settings = Settings(**found)  # type: ignore[arg-type]  # the spec has checked each value
        if settings.weight and found.get("normalize"):
            positive_sum(settings.weight)
        return settings


def _value(
    parameter: str,
    chain: Sequence[Mapping[str, Setting]],
    tensor: str,
    depth: float,
    default: Scalar,
) -> Scalar:
    """The first value that holds for the tensor."""
    told = (given[parameter].at(tensor, depth) for given in chain if parameter in given)
    return next((value for value in told if value is not None), default)


def _names(part: Part, tensors: Sequence[Mapping[str, str]], of: str = "") -> tuple[str, ...]:
    """What the first source's tensors are called; refuses sources that have others."""
    ours, names = part.sources[0], tensors[0]
    for source, theirs in zip(part.sources, tensors, strict=True):
        for has, lacks, missing in (
            (ours, source, names.keys() - theirs.keys()),
            (source, ours, theirs.keys() - names.keys()),
        ):
            if missing:
                message = (
                    f"{lacks.called} has no {min(missing)}{of}, which {has.called} has; expected "
                    "the same tensors in all"
                )
                raise Unsupported("MERGE_TENSOR_MISSING", message, field="models")
    return tuple(names)


def _check_alike(name: str, sources: Sequence[Source], entries: Sequence[Entry]) -> None:
    for source, entry in zip(sources, entries, strict=True):
        if entry.shape != entries[0].shape:
            message = (
                f"{name} is {_by(entry.shape)} in {source.called} and {_by(entries[0].shape)} in "
                f"{sources[0].called}; expected one shape"
            )
            raise Unsupported("MERGE_SHAPES_DIFFER", message, field="models")
        if entry.dtype.is_floating_point != entries[0].dtype.is_floating_point:
            message = f"{name} is of whole numbers in one model and of fractions in another"
            raise Unsupported("MERGE_DTYPE", message, field="models")


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"
