"""From what a blend file calls a model to a folder on this machine.

Fetched models live under `models_home()`, one folder per content, with a link by name to the one in
use, so that a replica needs neither the package nor the tools that a model was made from:

    $CUVEE_HOME/models/smollm2 -> smollm2-3f9c…      (without CUVEE_HOME: $XDG_CACHE_HOME/cuvee)
"""

from __future__ import annotations

import os
from pathlib import Path

from cluster.errors import InvalidRequest, NotFound
from cluster.models.hub import from_hub
from cluster.models.reference import ModelKind, ModelReference
from cluster.models.weights import weight_files

FETCHABLE = ("smollm2",)  # what `cuvee models fetch` can make without a hub

_EMBEDDED = Path(__file__).parent / "embedded"


def models_home() -> Path:
    """Where fetched models live; it need not exist yet."""
    if home := os.environ.get("CUVEE_HOME"):
        return Path(home).expanduser() / "models"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "cuvee" / "models"


def embedded_names() -> tuple[str, ...]:
    """The models that ship inside this package."""
    return tuple(sorted(path.parent.name for path in _EMBEDDED.glob("*/config.json")))


def fetched_names() -> tuple[str, ...]:
    """The models that `cuvee models fetch` has put here."""
    links = (path for path in models_home().glob("*") if path.is_symlink())
    return tuple(sorted(path.name for path in links if (path / "config.json").is_file()))


def resolve(model: str, revision: str | None = None, *, download: bool) -> Path:
    """The folder of a model, checked to hold a configuration and safetensors weights.

    `download` allows asking the hub; without it, hub repositories must be in the local cache.
    """
    try:
        reference = ModelReference.parse(model)
    except ValueError as error:
        message = f"got {model!r}; {error}"
        raise InvalidRequest("MODEL_NAME_INVALID", message, field="model") from None
    match reference.kind:
        case ModelKind.EMBEDDED:
            folder = _embedded(reference.name)
        case ModelKind.FETCHED:
            folder = _fetched(reference.name)
        case ModelKind.FOLDER:
            folder = Path(reference.name).expanduser().resolve()
        case ModelKind.HUB:
            folder = from_hub(reference.name, revision, download=download)
    weight_files(folder, called=model)
    return folder


def _embedded(name: str) -> Path:
    if name not in embedded_names():
        known = ", ".join(f"embedded:{known}" for known in embedded_names()) or "none in this build"
        message = f"there is no embedded:{name}; expected one of {known}"
        raise NotFound("MODEL_NOT_FOUND", message, field="model")
    return _EMBEDDED / name


def _fetched(name: str) -> Path:
    if name in fetched_names():
        return (models_home() / name).resolve()
    if name in FETCHABLE:
        message = f"fetched:{name} is not here yet; run: cuvee models fetch {name}"
        raise NotFound("MODEL_NOT_FETCHED", message, field="model")
    known = ", ".join(f"fetched:{known}" for known in sorted({*FETCHABLE, *fetched_names()}))
    message = f"there is no fetched:{name}; expected one of {known}"
    raise NotFound("MODEL_NOT_FOUND", message, field="model")
