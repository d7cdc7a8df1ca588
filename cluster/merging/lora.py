"""Adapters composed by peft and merged into their base: `merge_method: lora`.

The base is loaded whole, as peft does it. Of the combinations, `cat` is the weighted sum of what
the adapters change; `linear` adds their factors instead, as LoraHub (2307.13269) does, and wants
one rank; `svd` finds one of a given rank; the others are TIES and DARE on the factors.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.errors import InvalidRequest, NotFound, Unsupported
from cluster.merging.checkpoint import Checkpoint
from cluster.merging.digests import ADAPTER_FILES, digest_of
from cluster.merging.folder import check_room, whole_folder
from cluster.merging.likeness import tokenizer_of
from cluster.merging.manifest import write_manifest
from cluster.merging.parts import called, key_of
from cluster.models.hub import from_hub
from cluster.models.reference import ModelKind, ModelReference
from cluster.models.resolve import resolve
from cluster.spec.recipe import RecipeSpec

if TYPE_CHECKING:
    from cluster.merging.merge import Merged

_COMPOSED = "composed"
_WITH_DENSITY = ("ties", "dare", "magnitude")


class Composer:
    """A base model with adapters on it, composed as often as asked."""

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        """Load all in float32; raises Unsupported for adapters of another base or kind."""
        try:
            from peft import PeftModel
        except ImportError:
            message = "the package peft is not installed; run: pip install 'cuvee[merge]'"
            raise NotFound("PACKAGE_MISSING", message) from None
        self._names = [f"adapter{at}" for at in range(len(adapters))]
        model = load_model(base)
        self.dtype = model.config.dtype
        try:
            self._peft = PeftModel.from_pretrained(
                model.float(), adapters[0], adapter_name=self._names[0]
            )
            for name, folder in zip(self._names[1:], adapters[1:], strict=True):
                self._peft.load_adapter(folder, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            message = f"{adapters[0]} and the others do not fit {base}: {error}"
            raise Unsupported("ADAPTER_MISMATCH", message, field="models") from error

    @property
    def model(self) -> Any:
        """The base with what is composed now on it."""
        return self._peft

    def compose(self, weights: Sequence[float], parameters: Mapping[str, Any]) -> None:
        """Make the weighted combination the active adapter."""
        combination = str(parameters["combination"])
        options: dict[str, Any] = {"combination_type": combination}
        if combination.startswith(_WITH_DENSITY):
            options["density"] = parameters["density"]
        if parameters["rank"] and combination.endswith("svd"):
            options["svd_rank"] = int(parameters["rank"])
        if _COMPOSED in self._peft.peft_config:
            self._peft.set_adapter(self._names[0])
            self._peft.delete_adapter(_COMPOSED)
        try:
            self._peft.add_weighted_adapter(self._names, list(weights), _COMPOSED, **options)
        except (ValueError, RuntimeError) as error:
            message = f"peft cannot combine these adapters by {combination}: {error}"
            raise InvalidRequest("ADAPTERS_DIFFER", message, field="parameters") from error
        self._peft.set_adapter(_COMPOSED)

    def merged(self) -> Any:
        """The base with the combination in its weights, in its own type; ends the composer."""
        return self._peft.merge_and_unload().to(self.dtype)


def merge_adapters(recipe: RecipeSpec, out: Path, *, download: bool) -> Merged:
    """Compose, merge into the base, and write; raises CuveeError and leaves nothing behind."""
    from cluster.merging.merge import Merged

    assert recipe.base_model is not None, "the spec asks for it"
    folders = find_adapters(recipe, download=download)
    base = Checkpoint(recipe.base_model, folders[recipe.base_model])
    adapters = [folders[called(key_of(source))] for source in recipe.models]
    with whole_folder(out) as folder, contextlib.redirect_stderr(io.StringIO()):
        check_room(folder, base.num_bytes)
        composer = Composer(base.folder, adapters)
        composer.compose(adapter_weights(recipe), parameters_of(recipe))
        model = composer.merged()
        if not all(torch.isfinite(tensor).all() for tensor in model.parameters()):
            message = "the sum has numbers that are not finite; expected smaller weights"
            raise Unsupported("MERGE_NOT_FINITE", message, field="parameters.weight")
        model.save_pretrained(folder)
        _forget_path(folder / "config.json")
        for file in tokenizer_of(base):
            shutil.copyfile(file, folder / file.name)
        digests = {name: digest_of(path, name) for name, path in folders.items()}
        write_manifest(folder, recipe, digests)
    num_bytes = base.num_bytes + sum(_adapter_bytes(path) for path in adapters)
    return Merged(out, (), None, num_bytes, base.num_bytes)


def find_adapters(recipe: RecipeSpec, *, download: bool) -> dict[str, Path]:
    """The adapters' folders and the base's, by what they are called."""
    assert recipe.base_model is not None, "the spec asks for it"
    found = {called(key_of(s)): _adapter(*key_of(s), download=download) for s in recipe.models}
    return found | {recipe.base_model: resolve(recipe.base_model, download=download)}


def adapter_weights(recipe: RecipeSpec) -> list[float]:
    """Each adapter's own weight, else the recipe's, else 1."""
    default = recipe.parameters.get("weight")
    settings = [source.parameters.get("weight", default) for source in recipe.models]
    return [1.0 if s is None else float(s.at("", 0) or 0) for s in settings]


def parameters_of(recipe: RecipeSpec) -> dict[str, Any]:
    """The recipe's own parameters but the weights."""
    facts = {name: f for name, f in recipe.facts.parameters.items() if name != "weight"}
    given = {name: s.at("", 0) for name, s in recipe.parameters.items() if name in facts}
    return {name: f.default for name, f in facts.items()} | given


def load_model(folder: Path) -> Any:
    """A causal model, or a sequence classifier where that is what the folder holds."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if is_classifier(folder) else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype="auto", local_files_only=True).eval()


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a sequence classifier, such as a reward model."""
    config = json.loads((folder / "config.json").read_text())
    return "SequenceClassification" in (config.get("architectures") or [""])[0]


def _adapter(model: str, revision: str | None, *, download: bool) -> Path:
    reference = ModelReference.parse(model)
    if reference.kind is ModelKind.HUB:
        folder = from_hub(reference.name, revision, download=download)
    else:
        folder = Path(reference.name).expanduser()
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        message = f"{model} has no {missing[0]}; expected the folder of a peft adapter"
        raise NotFound("ADAPTER_NOT_FOUND", message, field="models")
    return folder


def _adapter_bytes(folder: Path) -> int:
    return (folder / ADAPTER_FILES[1]).stat().st_size


def _forget_path(config: Path) -> None:
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2) + "\n")
