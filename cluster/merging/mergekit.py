"""What mergekit has beyond the methods here, through its own files: `merge_method: mergekit`.

    merge_method: mergekit
    mergekit: {merge_method: della, base_model: org/a, models: […], dtype: bfloat16}
    mergekit: {base_model: org/a, gate_mode: hidden, experts: [{source_model: org/b, …}]}    # MoE

Models are named as everywhere in Cuvée and handed on as folders; paths that it leaves in its output
are removed. mergekit is LGPL and an extra: pip install 'cuvee[mergekit]'.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from cluster.errors import InvalidRequest, NotFound, Unsupported
from cluster.merging.checkpoint import Checkpoint
from cluster.merging.digests import digest_of
from cluster.merging.folder import whole_folder
from cluster.merging.manifest import write_manifest
from cluster.models.resolve import resolve
from cluster.spec.recipe import RecipeSpec

if TYPE_CHECKING:
    from cluster.merging.merge import Merged

_MODEL_KEYS = ("model", "base_model", "source_model", "tokenizer_source")
_NO_MODELS = ("union", "base")  # what `tokenizer_source` may be besides a model
_WITH_PATHS = ("mergekit_config.yml", "mergekit_moe_config.yml", "README.md")


def run_mergekit(recipe: RecipeSpec, out: Path, *, download: bool) -> Merged:
    """Run its merge, or its builder of mixtures of experts; leaves nothing behind on failure."""
    from cluster.merging.merge import Merged

    folders = folders_in(recipe, download=download)
    inputs = [Checkpoint(name, folder) for name, folder in folders.items()]
    content = _replaced(_content(recipe), lambda name: str(folders[name]))
    with whole_folder(out) as folder:
        with contextlib.redirect_stderr(io.StringIO()), _quiet():
            _run(content, folder, recipe.seed)
        for name in _WITH_PATHS:
            (folder / name).unlink(missing_ok=True)
        result = Checkpoint(recipe.name, folder)
        for name in result.entries:
            if not torch.isfinite(result.read(name)).all():
                message = f"{name}: mergekit gave numbers that are not finite"
                raise Unsupported("MERGE_NOT_FINITE", message, field="mergekit")
        digests = {name: digest_of(path, name) for name, path in folders.items()}
        write_manifest(folder, recipe, digests)
    return Merged(out, (), None, sum(c.num_bytes for c in inputs), result.num_bytes)


def folders_in(recipe: RecipeSpec, *, download: bool) -> dict[str, Path]:
    """Every model that the text names, by name."""
    names = dict.fromkeys(_models_in(_content(recipe)))
    return {name: resolve(name, download=download) for name in names}


def _run(content: dict[str, Any], folder: Path, seed: int) -> None:
    try:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.moe.config import MoEMergeConfig
        from mergekit.options import MergeOptions
        from mergekit.scripts.moe import build
    except ImportError:
        message = "the package mergekit is not installed; run: pip install 'cuvee[mergekit]'"
        raise NotFound("PACKAGE_MISSING", message) from None
    options = MergeOptions(
        copy_tokenizer=True, random_seed=seed, quiet=True, write_model_card=False
    )
    try:
        if "experts" in content:
            build(MoEMergeConfig.model_validate(content), str(folder), options, device="cpu")
        else:
            run_merge(MergeConfiguration.model_validate(content), str(folder), options=options)
    except SystemExit:
        message = (
            "mergekit refuses these experts: it wants prompts for each, and as many as are used"
        )
        raise InvalidRequest("MERGEKIT_REFUSED", message, field="mergekit") from None
    except OSError:
        raise
    except Exception as error:  # it raises whatever its parts do
        message = f"mergekit cannot do this: {error}"
        raise InvalidRequest("MERGEKIT_REFUSED", message, field="mergekit") from error


def _content(recipe: RecipeSpec) -> dict[str, Any]:
    try:
        content = yaml.safe_load(recipe.mergekit or "")
    except yaml.YAMLError as error:
        message = f"not valid YAML: {error}"
        raise InvalidRequest("MERGEKIT_REFUSED", message, field="mergekit") from None
    if not isinstance(content, dict):
        message = "expected a mapping as mergekit's own files have it"
        raise InvalidRequest("MERGEKIT_REFUSED", message, field="mergekit")
    return content


def _models_in(content: Any) -> Iterator[str]:
    if isinstance(content, list):
        for value in content:
            yield from _models_in(value)
    if isinstance(content, dict):
        for key, value in content.items():
            yield from [value] if _is_model(key, value) else _models_in(value)


def _replaced(content: Any, change: Callable[[str], str]) -> Any:
    """Plain data with the name of each model changed."""
    if isinstance(content, list):
        return [_replaced(value, change) for value in content]
    if not isinstance(content, dict):
        return content
    return {
        key: change(value) if _is_model(key, value) else _replaced(value, change)
        for key, value in content.items()
    }


def _is_model(key: str, value: Any) -> bool:
    return key in _MODEL_KEYS and isinstance(value, str) and value not in _NO_MODELS


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It logs every tensor that it skips."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
