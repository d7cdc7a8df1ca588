"""Which folders a recipe is made from, whatever its method."""

from __future__ import annotations

from pathlib import Path

from cluster.merging.parts import ModelKey, base_key, called, key_of
from cluster.models.resolve import resolve
from cluster.spec.recipe import RecipeSpec


def keys_of(recipe: RecipeSpec) -> list[ModelKey]:
    """Each model once, in the recipe's order; a base that is not listed comes last."""
    keys = list(dict.fromkeys(map(key_of, recipe.inputs)))
    base = base_key(recipe)
    return keys if base is None or base in keys else [*keys, base]


def find_folders(recipe: RecipeSpec, *, download: bool) -> dict[str, Path]:
    """The folder of every input, by what it is called; raises as `resolve`."""
    if recipe.merge_method == "mergekit":
        from cluster.merging.mergekit import folders_in

        return folders_in(recipe, download=download)
    if recipe.merge_method == "lora":
        from cluster.merging.lora import find_adapters

        return find_adapters(recipe, download=download)
    return {called(key): resolve(*key, download=download) for key in keys_of(recipe)}
