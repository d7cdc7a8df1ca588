"""What a merged model says of its own making: method, parameters, and hashes instead of paths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster import __version__
from cluster.merging.relation import Relation
from cluster.models.reference import ModelKind, ModelReference
from cluster.spec.recipe import RecipeSpec

MANIFEST = "cuvee_merge.json"
FORMAT = 1  # changes when the same recipe would give another result


def write_manifest(
    folder: Path,
    recipe: RecipeSpec,
    digests: Mapping[str, str],
    warnings: Sequence[str] = (),
    relation: Relation | None = None,
) -> None:
    """Into the folder of the result; `digests` are the inputs' by the names in the recipe."""
    content = {
        "format": FORMAT,
        "cuvee": __version__,
        "recipe": _without_folders(recipe.to_mapping(), digests),
        "inputs": [
            {"model": _anonymous(name, digests), "sha256": digest}
            for name, digest in digests.items()
        ],
        "warnings": [_clean(warning, digests) for warning in warnings],
    }
    if relation is not None:
        content["relation"] = _told(relation, digests)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def _without_folders(content: Any, digests: Mapping[str, str]) -> Any:
    """Plain data with folders named by what they hold."""
    if isinstance(content, Mapping):
        return {key: _without_folders(value, digests) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_folders(value, digests) for value in content]
    is_model = isinstance(content, str) and content in digests
    return _anonymous(content, digests) if is_model else content


def _told(relation: Relation, digests: Mapping[str, str]) -> dict[str, Any]:
    def name(model: str) -> str:
        return _anonymous(model, digests)

    changes = [
        {"models": [name(one), name(other)], "cosine": cosine}
        for (one, other), cosine in relation.changes.items()
    ]
    told = asdict(relation) | {"reference": name(relation.reference), "changes": changes}
    told["weights"] = {name(model): cosine for model, cosine in relation.weights.items()}
    return told


def _anonymous(model: str, digests: Mapping[str, str]) -> str:
    """Names of models as they are, folders by their hash."""
    is_folder = ModelReference.parse(model.partition("@")[0]).kind is ModelKind.FOLDER
    return f"sha256:{digests[model]}" if is_folder else model


def _clean(text: str, digests: Mapping[str, str]) -> str:
    for model in digests:
        text = text.replace(model, _anonymous(model, digests))
    return text
