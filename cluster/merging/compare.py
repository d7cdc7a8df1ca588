"""Is it worth it? A merge beside the models that it is made of, and beside blends of those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import InvalidRequest
from cluster.merging.bits import Reader, adapted, mixed, read_passages
from cluster.merging.inputs import find_folders
from cluster.merging.lora import Composer, is_classifier, load_model
from cluster.rankers.agreement import Judged, judge, read_pairs
from cluster.spec.recipe import RecipeSpec


@dataclass(frozen=True, slots=True)
class Row:
    """One way to use the models, and its bits per byte; lower is better."""

    name: str
    kind: Literal["member", "merge", "blend"]
    bits_per_byte: float


def compare_texts(recipe: RecipeSpec, merged: Path, files: Sequence[Path]) -> list[Row]:
    """Members, the merge, and probability blends of the members with equal weights; best first."""
    if is_classifier(merged):
        message = "got texts for a reward model; expected JSONL of prompt, chosen and rejected"
        raise InvalidRequest("COMPARE_NEEDS_PAIRS", message, field="compare")
    reader = Reader(merged, read_passages(files))
    readings = {name: reader.read(model) for name, model in members_of(recipe)}
    rows = [Row(name, "member", reading.bits_per_byte) for name, reading in readings.items()]
    own = reader.read(load_model(merged).float())
    rows.append(Row(recipe.merge_method, "merge", own.bits_per_byte))
    blended = [readings[name] for name in readings if name != recipe.base_model]
    if len(blended) > 1:
        even = [1.0] * len(blended)
        rows.append(Row("mixture by token, or mean", "blend", mixed(blended, even)))
        rows.append(Row("mixture, adapt", "blend", adapted(blended, even)))
    return sorted(rows, key=lambda row: row.bits_per_byte)


def compare_rewards(
    recipe: RecipeSpec, merged: Path, file: Path, noise: float = 0.1, seed: int = 0
) -> dict[str, Judged]:
    """Each reward model and their merge on pairs of replies, best first."""
    if not is_classifier(merged):
        message = "got pairs for a model that writes; expected text files"
        raise InvalidRequest("COMPARE_NEEDS_TEXTS", message, field="compare")
    pairs = read_pairs(file)
    folders = {**find_folders(recipe, download=False), recipe.merge_method: merged}
    found = {
        name: judge(folder, pairs, noise=noise, seed=seed)
        for name, folder in folders.items()
        if is_classifier(folder)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].accuracy))


def members_of(recipe: RecipeSpec) -> Iterator[tuple[str, Any]]:
    """Every model that the recipe names, in float32, one at a time; adapters on their base."""
    folders = find_folders(recipe, download=False)
    if recipe.merge_method != "lora":
        for name, folder in folders.items():
            yield name, load_model(folder).float()
        return
    assert recipe.base_model is not None, "the spec asks for it"
    base = folders.pop(recipe.base_model)
    yield recipe.base_model, load_model(base).float()
    for name, folder in folders.items():
        yield name, Composer(base, [folder]).model
