"""A recipe with its inputs found, compared and planned: what can be refused is, before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InvalidRequest, Unsupported
from cluster.merging.checkpoint import Checkpoint
from cluster.merging.inputs import keys_of
from cluster.merging.layers import stacked_config
from cluster.merging.likeness import check_alike, tied_tensors, tokenizer_of
from cluster.merging.parts import ModelKey, base_key, called
from cluster.merging.plan import Plan, plan_merge
from cluster.merging.writer import WeightWriter
from cluster.models.resolve import resolve
from cluster.spec.recipe import RecipeSpec

_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Prepared:
    """What a merge will do."""

    recipe: RecipeSpec
    checkpoints: Mapping[ModelKey, Checkpoint]  # the base last, unless it is listed before
    plan: Plan
    config: Mapping[str, Any]  # of the result
    tokenizer: Checkpoint  # whose tokenizer the result has
    template: str | None  # a chat template instead of the tokenizer's own

    def write_settings(self, folder: Path) -> None:
        """Everything but the weights."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        generation = next(iter(self.checkpoints.values())).folder / "generation_config.json"
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        for file in tokenizer_of(self.tokenizer):
            shutil.copyfile(file, folder / file.name)
        if self.template is not None:
            _forget_template(folder / _TOKENIZER_CONFIG)
            (folder / _TEMPLATE_FILE).write_text(self.template)

    def sketch(self, folder: Path) -> None:
        """The result as far as headers and settings go; its weights are holes."""
        self.write_settings(folder)
        WeightWriter(folder, self.plan.steps).sketch()


def prepare(recipe: RecipeSpec, *, download: bool) -> Prepared:
    """Find and compare the inputs; raises what says which of them does not fit, and why."""
    checkpoints = find_inputs(recipe, download=download)
    first = next(iter(checkpoints.values()))
    if tokenizer_source := recipe.tokenizer_source:
        tokenizer = _named(recipe, checkpoints, tokenizer_source, field="tokenizer_source")
    else:
        base = base_key(recipe)
        preferred = [checkpoints[base]] if base else []
        found = (c for c in [*preferred, *checkpoints.values()] if tokenizer_of(c))
        tokenizer = next(found, first)
    check_alike(list(checkpoints.values()), stacked=bool(recipe.slices))
    plan = plan_merge(recipe, checkpoints, tied_tensors(first))
    template = _template(recipe, checkpoints)
    return Prepared(
        recipe, checkpoints, plan, _config(recipe, checkpoints, plan), tokenizer, template
    )


def find_inputs(recipe: RecipeSpec, *, download: bool) -> dict[ModelKey, Checkpoint]:
    """Each model once, in the recipe's order; a base that only the method wants comes last."""
    keys = keys_of(recipe)
    return {key: Checkpoint(called(key), resolve(*key, download=download)) for key in keys}


def _named(
    recipe: RecipeSpec, checkpoints: Mapping[ModelKey, Checkpoint], name: str, *, field: str
) -> Checkpoint:
    """The input of that name, with a tokenizer."""
    name = recipe.base_model or "" if name == "base" else name
    found = next((c for (model, _), c in checkpoints.items() if model == name), None)
    if found is None:
        known = ", ".join(model for model, _ in checkpoints)
        message = f"got {name or 'base'}; expected a model of this recipe: {known}"
        raise InvalidRequest("MERGE_MODEL_UNKNOWN", message, field=field)
    if not tokenizer_of(found):
        message = f"{name} has no tokenizer; expected a model that has one"
        raise Unsupported("TOKENIZER_UNUSABLE", message, field=field)
    return found


def _config(
    recipe: RecipeSpec, checkpoints: Mapping[ModelKey, Checkpoint], plan: Plan
) -> dict[str, Any]:
    first = checkpoints[plan.layers[0][0]] if plan.layers else next(iter(checkpoints.values()))
    config = {key: value for key, value in first.config.items() if key != "_name_or_path"}
    if recipe.slices:
        taken = [(checkpoints[key].config, layer) for key, layer in plan.layers]
        config = stacked_config(config, taken, plan.num_source_layers)
    if recipe.result_dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = recipe.result_dtype
    return config


def _template(recipe: RecipeSpec, checkpoints: Mapping[ModelKey, Checkpoint]) -> str | None:
    given = recipe.chat_template
    if given is None or "{%" in given or "{{" in given:
        return given
    folder = _named(recipe, checkpoints, given, field="chat_template").folder
    if (folder / _TEMPLATE_FILE).is_file():
        return (folder / _TEMPLATE_FILE).read_text()
    settings = folder / _TOKENIZER_CONFIG
    found = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    if not isinstance(found, str):
        message = f"{given} has no chat template; expected a model that has one"
        raise Unsupported("NO_CHAT_TEMPLATE", message, field="chat_template")
    return found


def _forget_template(settings: Path) -> None:
    if settings.is_file():
        content = json.loads(settings.read_text())
        content.pop("chat_template", None)
        settings.write_text(json.dumps(content, indent=2) + "\n")
