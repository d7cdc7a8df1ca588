"""The Hugging Face hub as one source of model folders; its cache and its HF_* settings apply."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import CuveeError, NotFound, Unavailable

_FILES = (
    "model*.safetensors",
    "adapter*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.*",
)


def from_hub(name: str, revision: str | None, *, download: bool) -> Path:
    """The cached snapshot of a repository: top-level safetensors, configuration and tokenizer.

    Nothing else is downloaded: no pickles, no code, no other formats of the same weights.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(_FILES),
            ignore_patterns=["*/*"],
            local_files_only=not download,
        )
    except (OSError, ValueError) as error:  # all of the hub's errors are one of the two
        raise _translated(error, name, revision, download=download) from error
    return Path(folder)


def _translated(error: Exception, name: str, revision: str | None, *, download: bool) -> CuveeError:
    from huggingface_hub import errors

    what = f"{name}{f' at revision {revision}' if revision else ''}"
    hint = f"; for the folder of that name write ./{name}" if Path(name).is_dir() else ""
    if isinstance(error, errors.GatedRepoError):
        message = f"{name} is gated: accept its terms on the hub and set HF_TOKEN"
        return NotFound("MODEL_GATED", message, field="model")
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        message = f"the hub has no {what} (private ones need HF_TOKEN){hint}"
        return NotFound("MODEL_NOT_FOUND", message, field="model")
    if not download:
        message = f"{what} is not here yet; run: cuvee models fetch {name}{hint}"
        return NotFound("MODEL_NOT_FETCHED", message, field="model")
    message = f"{what} is not here, and the hub cannot be reached: {error}{hint}"
    return Unavailable("HUB_UNREACHABLE", message, field="model")
