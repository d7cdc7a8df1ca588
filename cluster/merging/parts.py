"""A recipe's parts: stretches of layers of the result, and the sources that each is merged from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.errors import InvalidRequest, Unsupported
from cluster.merging.checkpoint import Checkpoint
from cluster.merging.layers import Layout
from cluster.spec.recipe import InputSpec, LayersSpec, RecipeSpec
from cluster.spec.settings import Setting

ModelKey = tuple[str, str | None]  # a model's name and revision


@dataclass(frozen=True, slots=True)
class Source:
    """A model's layers from `begin` on, and what the recipe says of them."""

    key: ModelKey
    layout: Layout
    begin: int = 0
    parameters: Mapping[str, Setting] | None = None  # None: a base not listed

    @property
    def called(self) -> str:
        return called(self.key)

    def outside(self) -> dict[str, str]:
        """The tensors outside the layers; as in `layer`, each name twice."""
        return {name: name for name in self.layout.outside}

    def layer(self, offset: int) -> dict[str, str]:
        """The tensors of a layer of the stretch: what follows the layer's number, and the name."""
        number = self.begin + offset
        return {part: self.layout.name(number, part) for part in self.layout.layers[number]}


@dataclass(frozen=True, slots=True)
class Part:
    """Layers that are merged from the same sources."""

    sources: tuple[Source, ...]
    num_layers: int
    base: int | None  # which of the sources the changes are counted from
    parameters: Mapping[str, Setting]  # of the slice


def key_of(source: InputSpec) -> ModelKey:
    return source.model, source.revision


def called(key: ModelKey) -> str:
    """What errors and manifests call a model."""
    model, revision = key
    return f"{model}@{revision}" if revision else model


def base_key(recipe: RecipeSpec) -> ModelKey | None:
    """The base among the inputs: under the revision that the recipe gives it there, if any."""
    if recipe.base_model is None:
        return None
    named = next((s for s in recipe.inputs if s.model == recipe.base_model), None)
    return key_of(named) if named else (recipe.base_model, None)


def parts_of(
    recipe: RecipeSpec, checkpoints: Mapping[ModelKey, Checkpoint], dropped: frozenset[str]
) -> Iterator[Part]:
    """The parts in the result's order; raises InvalidRequest for layers that no model has."""
    layouts = {
        key: Layout.of(name for name in checkpoint.entries if name not in dropped)
        for key, checkpoint in checkpoints.items()
    }

    def source(given: InputSpec, begin: int = 0) -> Source:
        key = key_of(given)
        return Source(key, layouts[key], begin, given.parameters)

    base = base_key(recipe)
    wants_base = recipe.facts.base == "required" or recipe.has_t

    def part(sources: list[Source], num_layers: int, parameters: Mapping[str, Setting]) -> Part:
        place = next((at for at, source in enumerate(sources) if source.key == base), None)
        if wants_base and base is not None and place is None:
            place = len(sources)
            begin = sources[0].begin
            sources = [*sources, Source(base, layouts[base], begin)]
        return Part(tuple(sources), num_layers, place if wants_base else None, parameters)

    if recipe.models:
        whole = part(list(map(source, recipe.models)), 0, {})
        num_layers = _common_number_of_layers(whole.sources)
        yield Part(whole.sources, num_layers, whole.base, {})
    for at, given in enumerate(recipe.slices):
        sources = [source(of, of.layer_range[0]) for of in given.sources]
        for number, (of, found) in enumerate(zip(given.sources, sources, strict=True)):
            _check_range(of, found, field=f"slices[{at}].sources[{number}].layer_range")
        begin, end = given.sources[0].layer_range
        yield part(sources, end - begin, given.parameters)


def _common_number_of_layers(sources: tuple[Source, ...]) -> int:
    numbers = {source.called: len(source.layout.layers) for source in sources}
    if len(set(numbers.values())) > 1:
        words = ", ".join(f"{called} {number}" for called, number in numbers.items())
        message = f"numbers of layers differ ({words}); expected one, or slices that pick layers"
        raise Unsupported("MERGE_LAYERS_DIFFER", message, field="models")
    return len(sources[0].layout.layers)


def _check_range(given: LayersSpec, source: Source, *, field: str) -> None:
    begin, end = given.layer_range
    num_layers = len(source.layout.layers)
    if end > num_layers:
        message = (
            f"got [{begin}, {end}], but {source.called} has {num_layers} layers; expected "
            f"0 to {num_layers} at most"
        )
        raise InvalidRequest("MERGE_LAYERS_OUT_OF_RANGE", message, field=field)
