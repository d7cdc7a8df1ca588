"""A merge recipe: several checkpoints in, one out, in the shape that mergekit's files have.

    merge_method: ties
    base_model: org/ancestor
    models:
      - {model: org/a, parameters: {weight: 0.6, density: 0.5}}
      - {model: ./b, parameters: {weight: 0.4}}

`slices` instead of `models` picks layers. What a parameter means is in `cluster.merging.methods`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from cluster.models.reference import EXPECTED
from cluster.spec.frozen import Frozen
from cluster.spec.merge_methods import MERGE_METHODS, MethodFacts
from cluster.spec.references import did_you_mean
from cluster.spec.settings import Setting, SettingField
from cluster.spec.values import FrozenMapping, Keyed, Listed, ModelName, refuse

_NAME_LENGTH = 10  # of the hash in a merged model's name

Settings = Keyed[SettingField]
Dtype = Literal["float32", "bfloat16", "float16"]


class InputSpec(Frozen):
    """One model of a merge; an adapter's folder where the method is lora."""

    model: ModelName = Field(description=EXPECTED)
    revision: str | None = Field(
        default=None, description="a branch, tag or commit of a hub repository, as text"
    )
    parameters: Settings = Field(
        default=FrozenMapping({}), description="a mapping such as {weight: 0.5}"
    )


class LayersSpec(InputSpec):
    """Some layers of a model."""

    layer_range: Listed[int] = Field(
        min_length=2,
        max_length=2,
        description="first layer and the one after the last, such as [0, 4]",
    )

    @field_validator("layer_range")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not 0 <= layers[0] < layers[1]:
            raise refuse("expected a first layer of at least 0 and a later one after the last")
        return layers


class SliceSpec(Frozen):
    """Consecutive layers of the result: those of one model, or of several, merged."""

    sources: Listed[LayersSpec] = Field(
        min_length=1, description="a list of models with a layer_range each"
    )
    parameters: Settings = Field(
        default=FrozenMapping({}), description="a mapping such as {t: [0, 1]}"
    )

    @field_validator("sources")
    @classmethod
    def _equally_long(cls, sources: tuple[LayersSpec, ...]) -> tuple[LayersSpec, ...]:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in sources}
        if len(lengths) > 1:
            raise refuse("expected layer_range of one length from all sources of a slice")
        return sources


class RecipeSpec(Frozen):
    """How one model is made of others."""

    merge_method: str = Field(description=f"one of {', '.join(MERGE_METHODS)}")
    base_model: ModelName | None = Field(
        default=None, description=f"the models' common ancestor: {EXPECTED}"
    )
    models: Listed[InputSpec] = Field(
        default=(), description="a list such as [{model: org/a, parameters: {weight: 0.5}}]"
    )
    slices: Listed[SliceSpec] = Field(
        default=(), description="a list such as [{sources: [{model: org/a, layer_range: [0, 4]}]}]"
    )
    parameters: Settings = Field(
        default=FrozenMapping({}), description="a mapping such as {normalize: true}"
    )
    dtype: Dtype | None = Field(
        default=None, description="of the result: one of float32, bfloat16, float16"
    )
    out_dtype: Dtype | None = Field(
        default=None, description="the same, where dtype is given for mergekit's arithmetic"
    )
    tokenizer_source: ModelName | Literal["base"] | None = Field(
        default=None, description="base, or a model of this recipe"
    )
    chat_template: str | None = Field(
        default=None, description="a model of this recipe, or the Jinja text itself"
    )
    seed: int = Field(default=0, ge=0, description="a whole number of at least 0")
    mergekit: str | None = Field(
        default=None, description="the text of a mergekit file, with merge_method: mergekit"
    )

    @property
    def facts(self) -> MethodFacts:
        return MERGE_METHODS[self.merge_method]

    @property
    def result_dtype(self) -> str | None:
        """What the result is stored as; None for what each tensor of the first model is."""
        return self.out_dtype or self.dtype

    @property
    def has_t(self) -> bool:
        """Whether it says how far to go from one model to the other."""
        return any("t" in settings for _, settings in self._settings())

    @property
    def name(self) -> str:
        """What the result is called before it has a folder; the same for the same recipe."""
        canonical = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:_NAME_LENGTH]
        return f"merge:{self.merge_method}-{digest}"

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Every model that is named, in the file's order, some perhaps several times."""
        return (*self.models, *(source for part in self.slices for source in part.sources))

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, such as JSON and YAML hold, without what is left to default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_mergekit(cls, given: Any) -> Any:
        """A mapping under `mergekit` is as good as its text."""
        if isinstance(given, dict) and isinstance(given.get("mergekit"), dict):
            return {**given, "mergekit": json.dumps(given["mergekit"])}
        return given

    @field_validator("merge_method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in MERGE_METHODS:
            known = tuple(MERGE_METHODS)
            raise refuse(f"expected one of {', '.join(known)}{did_you_mean(method, known)}")
        return method

    @field_validator("base_model")
    @classmethod
    def _base_where_used(cls, base: str | None, info: ValidationInfo) -> str | None:
        facts = MERGE_METHODS.get(info.data.get("merge_method", ""))
        if facts and base and facts.base == "none":
            raise refuse(f"expected none: {info.data['merge_method']} has no use for it")
        return base

    @model_validator(mode="after")
    def _consistent(self) -> RecipeSpec:
        problem = next(self._problems(), None)
        if problem is not None:
            raise refuse(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if (self.merge_method == "mergekit") != (self.mergekit is not None):
            yield "mergekit: expected with merge_method: mergekit, and only there"
        if self.merge_method == "mergekit":
            if self.models or self.slices:
                yield "models: expected none beside mergekit, whose own text names them"
            return
        if bool(self.models) == bool(self.slices):
            yield "expected exactly one of models and slices"
        if self.facts.base == "required" and self.base_model is None:
            yield f"base_model: missing; {self.merge_method} merges what models changed of it"
        if self.slices and self.merge_method in ("ema", "lawa", "lora"):
            yield f"slices: expected models, which {self.merge_method} takes whole"
        for group in (self.models, *(part.sources for part in self.slices)):
            yield from self._problems_of_group(group)
        for place, settings in self._settings():
            yield from self._problems_of(place, settings)

    def _problems_of_group(self, group: tuple[InputSpec, ...]) -> Iterator[str]:
        most = self.facts.max_models
        if most is not None and len(group) > most:
            yield f"expected {most} model at a time for {self.merge_method}, got {len(group)}"
        merged = {(source.model, source.revision) for source in group}
        if self.has_t and "t" in self.facts.parameters:
            base = {(self.base_model, None)} if self.base_model else set()
            if group and len(merged | base) != 2:
                yield "parameters.t: expected two models with it; several have weight each"
        given = {(name, rev) for name, rev in merged if name != self.base_model}
        if self.facts.base == "required" and group and not given:
            yield "models: expected at least one model besides base_model"

    def _settings(self) -> Iterator[tuple[str, Mapping[str, Setting]]]:
        yield "parameters", self.parameters
        for number, source in enumerate(self.models):
            yield f"models[{number}].parameters", source.parameters
        for at, part in enumerate(self.slices):
            yield f"slices[{at}].parameters", part.parameters
            for number, source in enumerate(part.sources):
                yield f"slices[{at}].sources[{number}].parameters", source.parameters

    def _problems_of(self, place: str, settings: Mapping[str, Setting]) -> Iterator[str]:
        known = self.facts.parameters
        for name, setting in settings.items():
            where = f"{place}.{name}"
            if name not in known:
                words = ", ".join(known)
                yield f"{where}: {self.merge_method} has {words}{did_you_mean(name, tuple(known))}"
                continue
            is_models = place.startswith("models[") or "sources[" in place
            if is_models and not known[name].per_model:
                yield f"{where}: expected among the recipe's own parameters, one for all models"
            if self.merge_method == "lora" and not setting.is_constant:
                yield f"{where}: expected one value: peft merges adapters whole"
            for value in setting.scalars():
                if not known[name].accepts(value):
                    yield f"{where}: got {value}; expected {known[name].expected}"


class MergedSpec(Frozen):
    """A model that is made before it is served."""

    merge: RecipeSpec = Field(
        description="a recipe such as {merge_method: linear, models: [{model: org/a}, …]}"
    )
