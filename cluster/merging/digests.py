"""What a model folder holds, as one hash: names and paths play no part.

Hashing reads everything, so what was found is remembered beside the fetched models for as long as
no file's size, time or inode changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from cluster.merging.likeness import TOKENIZER_FILES
from cluster.models.resolve import models_home
from cluster.models.weights import weight_files

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

_OTHER_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def digest_of(folder: Path, called: str) -> str:
    """SHA-256 over configuration, tokenizer and weights, or over an adapter, in hexadecimal."""
    names = ADAPTER_FILES if (folder / ADAPTER_FILES[0]).is_file() else _OTHER_FILES
    files = [file for name in names if (file := folder / name).is_file()]
    if names is _OTHER_FILES:
        files += weight_files(folder, called=called)
    seen = [[file.name, *_state(file)] for file in files]
    memo = _memo_of(folder)
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and known.get("files") == seen:
        return str(known["digest"])
    digest = _digest_of_files(files)
    _remember(memo, {"files": seen, "digest": digest})
    return digest


def _digest_of_files(files: list[Path]) -> str:
    """SHA-256 over files, each with its name."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.name}\0{content}\n".encode())
    return total.hexdigest()


def _state(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _memo_of(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
    return models_home() / ".digests" / f"{name}.json"


def _remember(memo: Path, content: dict[str, object]) -> None:
    """Where that can be written; else it is found again next time."""
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        part = memo.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(content))
        part.replace(memo)
    except OSError:
        return
