"""Weights tuned on text: which of the recipe's numbers predict held-out words best.

The weights of the models, or `t`, start as the recipe has them and are moved by COBYQA (Ragonneau
and Zhang 2023), a trust-region method that needs values alone. What it found is judged on passages
that it did not try to predict. For adapters this is LoraHub (2307.13269): nats per token plus
0.05 Σ |w|, and weights between -1.5 and 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import transformers

from cluster.errors import InvalidRequest, NotFound
from cluster.merging.bits import Reader
from cluster.merging.inputs import find_folders
from cluster.merging.lora import Composer, parameters_of
from cluster.merging.merge import merged_tensors
from cluster.merging.parts import called, key_of
from cluster.merging.prepare import prepare
from cluster.models.passages import Passage
from cluster.spec.recipe import InputSpec, RecipeSpec
from cluster.spec.settings import Setting

Watch = Callable[[int, float], None]  # evaluations so far, and the best loss
ModelOf = Callable[[Sequence[float]], Any]

_LORA_PENALTY = 0.05
_BOUNDS = {"linear": (0.0, 1.0), "slerp": (0.0, 1.0), "lora": (-1.5, 1.5)}
_CHANGES_BOUNDS = (0.0, 1.5)  # of methods on changes
_STEP = 0.25  # of the first region


@dataclass(frozen=True, slots=True)
class Split:
    """Bits per byte on what was tuned on, and on what was not."""

    tuned: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Found:
    """A search's best recipe beside the one that it began with."""

    recipe: RecipeSpec
    numbers: tuple[float, ...]
    start: Split
    best: Split
    num_evaluations: int


def search(
    recipe: RecipeSpec,
    passages: Sequence[Passage],
    *,
    max_evaluations: int,
    watch: Watch = lambda number, best: None,
) -> Found:
    """Tune on every other passage; raises InvalidRequest for recipes without weights."""
    try:
        from scipy.optimize import minimize
    except ImportError:
        message = "the package scipy is not installed; run: pip install 'cuvee[merge]'"
        raise NotFound("PACKAGE_MISSING", message) from None
    if len(passages) < 2:
        raise InvalidRequest("TEXT_TOO_SHORT", "expected at least 2 passages", field="files")
    start = _numbers_of(recipe)
    model_of = _composed(recipe) if recipe.merge_method == "lora" else _merged(recipe)
    tokenizer = next(iter(find_folders(_without_adapters(recipe), download=False).values()))
    tuned, held_out = Reader(tokenizer, passages[0::2]), Reader(tokenizer, passages[1::2])
    penalty = _LORA_PENALTY if recipe.merge_method == "lora" else 0.0
    seen: list[tuple[float, tuple[float, ...]]] = []

    def loss(numbers: Any) -> float:
        reading = tuned.read(model_of(numbers.tolist()))
        found = reading.nats_per_token + penalty * float(np.abs(numbers).sum())
        seen.append((found, tuple(numbers.tolist())))
        watch(len(seen), min(seen)[0])
        return found

    def split(numbers: Sequence[float]) -> Split:
        model = model_of(numbers)
        return Split(tuned.read(model).bits_per_byte, held_out.read(model).bits_per_byte)

    minimize(
        loss,
        np.array(start),
        method="COBYQA",
        bounds=[_BOUNDS.get(recipe.merge_method, _CHANGES_BOUNDS)] * len(start),
        options={"maxfev": max_evaluations, "initial_tr_radius": _STEP},
    )
    best = min(seen)[1]
    return Found(with_numbers(recipe, best), best, split(start), split(best), len(seen))


def with_numbers(recipe: RecipeSpec, numbers: Sequence[float]) -> RecipeSpec:
    """The recipe with those weights, or with that `t`."""
    content = recipe.to_mapping()
    if recipe.has_t:
        content["parameters"] = {**content.get("parameters", {}), "t": float(numbers[0])}
    else:
        weighed = _weighed(recipe)
        of_weighed = [
            m for m, s in zip(content["models"], recipe.models, strict=True) if s in weighed
        ]
        for model, number in zip(of_weighed, numbers, strict=True):
            model["parameters"] = {**model.get("parameters", {}), "weight": float(number)}
    return RecipeSpec.model_validate(content)


def _merged(recipe: RecipeSpec) -> ModelOf:
    """Merged anew in memory for each evaluation."""
    checkpoints = prepare(recipe, download=False).checkpoints
    folder = next(iter(checkpoints.values())).folder
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = getattr(transformers, config.architectures[0])

    def model_of(numbers: Sequence[float]) -> Any:
        prepared = prepare(with_numbers(recipe, numbers), download=False)
        state = {step.name: tensor.float() for step, tensor in merged_tensors(prepared)}
        return kind.from_pretrained(None, config=config, state_dict=state, dtype="float32").eval()

    return model_of


def _composed(recipe: RecipeSpec) -> ModelOf:
    """Adapters weighed anew on a base that is loaded once."""
    assert recipe.base_model is not None, "the spec asks for it"
    folders = find_folders(recipe, download=False)
    adapters = [folders[called(key_of(source))] for source in recipe.models]
    composer = Composer(folders[recipe.base_model], adapters)

    def model_of(numbers: Sequence[float]) -> Any:
        composer.compose(numbers, parameters_of(recipe))
        return composer.model

    return model_of


def _numbers_of(recipe: RecipeSpec) -> tuple[float, ...]:
    """What is tuned, as the recipe has it; raises InvalidRequest where that is no single number."""
    facts = recipe.facts.parameters
    if recipe.slices or "weight" not in facts:
        message = f"{recipe.merge_method} over {'slices' if recipe.slices else 'models'} has none"
        raise InvalidRequest("NOTHING_TO_TUNE", f"expected weights; {message}", field="recipe")
    name = "t" if recipe.has_t else "weight"
    settings = [recipe.parameters.get(name, Setting.parse(facts[name].default))]
    if not recipe.has_t:
        settings = [s.parameters.get(name, settings[0]) for s in _weighed(recipe)]
    if not all(setting.is_constant for setting in settings):
        message = f"expected one number as {name} of each model to start from, not one per layer"
        raise InvalidRequest("NOTHING_TO_TUNE", message, field=f"parameters.{name}")
    return tuple(float(setting.at("", 0) or 0) for setting in settings)


def _weighed(recipe: RecipeSpec) -> list[InputSpec]:
    """The models with a weight: all but a base whose changes the others are."""
    is_on_changes = recipe.facts.base == "required"
    return [s for s in recipe.models if not (is_on_changes and s.model == recipe.base_model)]


def _without_adapters(recipe: RecipeSpec) -> RecipeSpec:
    """Models with a tokenizer: of adapters, their base."""
    if recipe.merge_method != "lora":
        return recipe
    content = {"merge_method": "linear", "models": [{"model": recipe.base_model}]}
    return RecipeSpec.model_validate(content)
