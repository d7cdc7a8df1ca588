"""Whether checkpoints can be merged at all: configurations, vocabularies, tied weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import Unsupported
from cluster.merging.checkpoint import Checkpoint
from cluster.merging.layers import NUM_LAYERS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
_OF_NO_WEIGHT = {  # what a configuration says besides what its weights mean
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "initializer_range",
    "pretraining_tp",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
_MAX_SHOWN = 60


def check_alike(checkpoints: Sequence[Checkpoint], *, stacked: bool) -> None:
    """Raise Unsupported unless all have one configuration and one vocabulary.

    Where layers are picked (`stacked`) their numbers may differ.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        _check_vocabularies(first, other)
        _check_configurations(first, other, stacked=stacked)


def tied_tensors(checkpoint: Checkpoint) -> frozenset[str]:
    """The tensors that a checkpoint stores once more than it needs to, being tied to others."""
    import transformers

    config = checkpoint.normalized_config
    if not config.get("tie_word_embeddings"):
        return frozenset()
    architecture = (config.get("architectures") or [""])[0]
    tied = getattr(getattr(transformers, architecture, None), "_tied_weights_keys", None)
    names = tied if isinstance(tied, Mapping) else dict.fromkeys(tied or (), "")
    return frozenset(name for name, to in names.items() if not to or to in checkpoint.entries)


def tokenizer_of(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """The files of its tokenizer; none where it has none."""
    files = (checkpoint.folder / name for name in TOKENIZER_FILES)
    return tuple(file for file in files if file.is_file())


def _check_configurations(first: Checkpoint, other: Checkpoint, *, stacked: bool) -> None:
    ours, theirs = first.normalized_config, other.normalized_config
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other_value = ours.get(key), theirs.get(key)
        if key in _OF_NO_WEIGHT or "dropout" in key or mine == other_value:
            continue
        if stacked and (key in NUM_LAYERS or "layer" in key):
            continue
        message = (
            f"configurations differ in {key}: {_shown(mine)} in {first.called}, "
            f"{_shown(other_value)} in {other.called}; expected models of one architecture"
        )
        raise Unsupported("MERGE_CONFIGS_DIFFER", message, field="models")


def _check_vocabularies(first: Checkpoint, other: Checkpoint) -> None:
    """By the files' bytes, and only where those differ by what the tokenizers say."""
    ours, theirs = (_vocabulary_files(checkpoint) for checkpoint in (first, other))
    if not ours or not theirs or ours == theirs:
        return
    from cluster.models.facts import read_vocabulary

    prints = [read_vocabulary(checkpoint.folder).fingerprint for checkpoint in (first, other)]
    if prints[0] != prints[1]:
        message = (
            f"{first.called} and {other.called} have different vocabularies, so a token's row is "
            "another token's; expected one vocabulary, or mergekit with tokenizer_source: union"
        )
        raise Unsupported("MERGE_VOCABULARIES_DIFFER", message, field="models")


def _vocabulary_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    files = ((name, checkpoint.folder / name) for name in _VOCABULARY_FILES)
    return {name: file.read_bytes() for name, file in files if file.is_file()}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
