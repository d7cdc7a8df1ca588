"""Merges that blend files name: built once per machine, found again by what they are made of.

$CUVEE_HOME/models/.merged/ties-3f9c…/      the recipe and the inputs' content decide the name
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import NotFound, Unavailable
from cluster.merging.digests import digest_of
from cluster.merging.inputs import find_folders
from cluster.merging.manifest import FORMAT
from cluster.models.resolve import models_home, resolve
from cluster.spec import MergedSpec, PlacedSpec, RecipeSpec

if TYPE_CHECKING:
    from cluster.merging.merge import Watch

_KEY_LENGTH = 16


def folder_of(spec: PlacedSpec, *, download: bool, watch: Watch = lambda done, total: None) -> Path:
    """The folder of a member's or ranker's model; a merge is built now unless it is there.

    Processes that ask for the same merge at the same time wait for one of them to build it.
    """
    if not isinstance(spec.model, MergedSpec):
        return resolve(spec.model, spec.revision, download=download)
    recipe = spec.model.merge
    folder = cached_folder(recipe, download=download)
    if not folder.is_dir():
        from cluster.merging.merge import merge

        with _alone(folder):
            if not folder.is_dir():
                merge(recipe, folder, download=download, watch=watch)
    return folder


def folder_or_sketch(spec: PlacedSpec, scratch: Path) -> Path:
    """The same without building anything: an unbuilt merge's headers and settings, in `scratch`."""
    if not isinstance(spec.model, MergedSpec):
        return resolve(spec.model, spec.revision, download=False)
    recipe = spec.model.merge
    folder = cached_folder(recipe, download=False)
    if folder.is_dir():
        return folder
    if recipe.merge_method == "mergekit":
        message = f"{recipe.name} is not built yet, and mergekit alone knows what it will be"
        raise NotFound("MERGE_NOT_BUILT", f"{message}; cuvee up builds it", field="model")
    if recipe.merge_method == "lora":
        assert recipe.base_model is not None, "the spec asks for it"
        return resolve(recipe.base_model, download=False)
    from cluster.merging.prepare import prepare

    scratch.mkdir()
    prepare(recipe, download=False).sketch(scratch)
    return scratch


def cached_folder(recipe: RecipeSpec, *, download: bool) -> Path:
    """Where the result is, or will be; finds and hashes the inputs."""
    folders = find_folders(recipe, download=download)
    digests = {name: digest_of(folder, name) for name, folder in folders.items()}
    places = {name.partition("@")[0]: f"input {at}" for at, name in enumerate(folders)}
    content = [FORMAT, _renamed(recipe.to_mapping(), places), list(digests.values())]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_LENGTH]
    return models_home() / ".merged" / f"{recipe.merge_method}-{key}"


def _renamed(content: Any, places: Mapping[str, str]) -> Any:
    """Plain data with models named by their place among the inputs, wherever they lie."""
    if isinstance(content, Mapping):
        return {key: _renamed(value, places) for key, value in content.items()}
    if isinstance(content, list):
        return [_renamed(value, places) for value in content]
    if not isinstance(content, str):
        return content
    names = sorted(places, key=len, reverse=True)
    pattern = "|".join(map(re.escape, names))
    return re.sub(pattern, lambda found: places[found[0]], content) if names else content


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; ends with the process, however that ends."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f"{folder.name}.lock").open("w")
    except OSError as error:
        message = f"{folder.parent} cannot be written: {error}; set CUVEE_HOME to a place that can"
        raise Unavailable("MODELS_HOME_UNWRITABLE", message) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
