"""From a recipe to a model folder, tensor by tensor.

Memory holds the inputs' tensors of one name and the result's; a rule adds float32 copies of a piece
of them. The folder appears when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from cluster.errors import Unsupported
from cluster.merging.digests import digest_of
from cluster.merging.folder import check_room, whole_folder
from cluster.merging.manifest import write_manifest
from cluster.merging.methods import METHODS, Sources
from cluster.merging.parts import ModelKey, base_key, called
from cluster.merging.pieces import assemble
from cluster.merging.plan import Step
from cluster.merging.prepare import Prepared, prepare
from cluster.merging.relation import Relating, Relation, warnings_about
from cluster.merging.writer import WeightWriter
from cluster.spec.recipe import RecipeSpec

Watch = Callable[[int, int], None]  # bytes read and written so far, and of how many

_MAX_AHEAD_BYTES = 128 << 20  # of a tensor that is read before its turn


@dataclass(frozen=True, slots=True)
class Merged:
    """A result, and what was noticed on the way."""

    folder: Path
    warnings: tuple[str, ...]
    relation: Relation | None
    num_bytes_read: int
    num_bytes_written: int


def merge(
    recipe: RecipeSpec,
    out: Path,
    *,
    download: bool = False,
    watch: Watch = lambda done, total: None,
) -> Merged:
    """Merge into a new folder; raises CuveeError and leaves nothing behind."""
    if recipe.merge_method == "lora":
        from cluster.merging.lora import merge_adapters

        return merge_adapters(recipe, out, download=download)
    if recipe.merge_method == "mergekit":
        from cluster.merging.mergekit import run_mergekit

        return run_mergekit(recipe, out, download=download)
    return _merge(prepare(recipe, download=download), out, watch)


def _merge(prepared: Prepared, out: Path, watch: Watch) -> Merged:
    plan, relating = prepared.plan, Relating()
    total, done = plan.num_bytes_read + plan.num_bytes, 0
    with whole_folder(out) as folder, ThreadPoolExecutor(1) as hashing:
        check_room(folder, plan.num_bytes)
        digests = hashing.submit(digests_of, prepared)
        prepared.write_settings(folder)
        with WeightWriter(folder, plan.steps) as writer:
            for step, tensor in merged_tensors(prepared, relating):
                writer.write(step.name, tensor)
                done += step.num_bytes + step.entry.num_bytes * len(step.read)
                watch(done, total)
            writer.finish()
        base = base_key(prepared.recipe)
        relation = relating.found(called(base) if base else None)
        warnings = warnings_about(relation, has_ancestor=base is not None)
        write_manifest(folder, prepared.recipe, digests.result(), warnings, relation)
    return Merged(out, tuple(warnings), relation, plan.num_bytes_read, plan.num_bytes)


def digests_of(prepared: Prepared) -> dict[str, str]:
    """What each input holds, by its name in the recipe."""
    return {c.called: digest_of(c.folder, c.called) for c in prepared.checkpoints.values()}


def merged_tensors(
    prepared: Prepared, relating: Relating | None = None
) -> Iterator[tuple[Step, Tensor]]:
    """Every tensor of the result in the plan's order; raises Unsupported where not finite."""
    places = {key: at for at, key in enumerate(prepared.checkpoints)}
    for step, tensors in _read_ahead(prepared):
        if relating is not None and len(tensors) > 1:
            relating.see([called(operand.model) for operand in step.read], tensors)
        result = merge_step(prepared.recipe.merge_method, step, tensors, places)
        del tensors  # before others are read
        yield step, result


def _read_ahead(prepared: Prepared) -> Iterator[tuple[Step, list[Tensor]]]:
    """Each step with what it reads; what the next one reads comes in meanwhile, unless large."""

    def read(step: Step) -> list[Tensor]:
        return [prepared.checkpoints[o.model].read(o.tensor) for o in step.read]

    steps = prepared.plan.steps
    with ThreadPoolExecutor(1) as reading:
        ahead: Future[list[Tensor]] | None = None
        for step, following in zip_longest(steps, steps[1:]):
            tensors = read(step) if ahead is None else ahead.result()
            is_small = following is not None and following.num_bytes <= _MAX_AHEAD_BYTES
            ahead = reading.submit(read, following) if is_small else None
            yield step, tensors
            del tensors


def merge_step(
    method: str, step: Step, tensors: list[Tensor], places: Mapping[ModelKey, int]
) -> Tensor:
    """One tensor, of the step's type; `tensors` are those that it reads."""
    operands = tensors[: len(step.operands)]
    if not step.dtype.is_floating_point:
        return _the_same(step, tensors)
    sources = Sources(
        step.name,
        operands,
        None if step.base is None else tensors[-1],
        [places[operand.model] for operand in step.operands],
    )
    found = assemble(METHODS[method](sources, step.settings), operands[0], step.dtype)
    if found is None:
        raise _not_finite(step, tensors)
    return found


def _the_same(step: Step, tensors: list[Tensor]) -> Tensor:
    """Whole numbers (positions, masks) are no weights: all models must have the same."""
    for operand, tensor in zip(step.read, tensors, strict=True):
        if not torch.equal(tensor, tensors[0]):
            first = called(step.read[0].model)
            message = (
                f"{step.name} is of whole numbers and differs between {first} and "
                f"{called(operand.model)}; expected the same in all, since these cannot be averaged"
            )
            raise Unsupported("MERGE_DTYPE", message, field="models")
    return tensors[0]


def _not_finite(step: Step, tensors: list[Tensor]) -> Unsupported:
    bad = [
        called(operand.model)
        for operand, tensor in zip(step.read, tensors, strict=True)
        if not torch.isfinite(tensor).all()
    ]
    why = f"{bad[0]} has such itself" if bad else f"too large for {step.dtype}; lower the weights"
    message = f"{step.name}: got numbers that are not finite ({why}); expected finite ones"
    return Unsupported("MERGE_NOT_FINITE", message, field="models")
