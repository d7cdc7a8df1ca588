"""A folder's weight files, and what their headers say; no weight is ever read here.

Only safetensors are accepted: a pickle runs code when it is opened.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import NotFound, Unsupported

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.gguf")
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """The size of a checkpoint, told from its headers."""

    num_parameters: int  # numbers of any type
    num_floats: int  # those that loading converts to the dtype asked for
    other_bytes: int  # integers and packed formats, kept as they are
    dtype: str  # the commonest float type
    file_bytes: int


def weight_files(folder: Path, *, called: str = "") -> tuple[Path, ...]:
    """The weight files that transformers would load from a folder, or an error saying why none."""
    called = called or str(folder)
    if not folder.is_dir():
        raise NotFound("MODEL_NOT_FOUND", f"{called}: there is no folder {folder}", field="model")
    if not (folder / "config.json").is_file():
        hint = ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it is an adapter: merge it into its base model first"
        message = f"{called}: {folder} holds no config.json, so it is no model folder{hint}"
        raise NotFound("MODEL_NOT_FOUND", message, field="model")
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        return _shards(folder, called)
    other = sorted(path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern))
    found = f"only {', '.join(other)}" if other else "no weights"
    raise Unsupported(
        "WEIGHTS_NOT_SAFETENSORS",
        f"{called}: {folder} holds {found}; expected model.safetensors (pickled weights are refused"
        " because they run code when opened; save_pretrained of transformers writes safetensors)",
        field="model",
    )


def _shards(folder: Path, called: str) -> tuple[Path, ...]:
    names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        message = f"{called}: {folder} lacks {', '.join(missing)}, which {INDEX} names"
        raise NotFound("WEIGHTS_INCOMPLETE", message, field="model")
    return tuple(folder / name for name in names)


def weight_sizes(folder: Path) -> WeightSizes:
    """Add up the headers of a folder's weight files."""
    files = weight_files(folder)
    num_of: dict[str, int] = {}
    other_bytes = 0
    for file in files:
        for tensor in read_header(file)[0].values():
            size = math.prod(tensor["shape"])
            num_of[tensor["dtype"]] = num_of.get(tensor["dtype"], 0) + size
            if tensor["dtype"] not in FLOATS:
                start, end = tensor["data_offsets"]
                other_bytes += end - start
    floats = {dtype: size for dtype, size in num_of.items() if dtype in FLOATS}
    return WeightSizes(
        num_parameters=sum(num_of.values()),
        num_floats=sum(floats.values()),
        other_bytes=other_bytes,
        dtype=FLOATS[max(floats, key=floats.__getitem__)] if floats else "float32",
        file_bytes=sum(file.stat().st_size for file in files),
    )


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, by name, and where their data begins."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length <= _MAX_HEADER_BYTES:
            try:
                header = json.loads(stream.read(length))
            except ValueError:
                header = None
            if isinstance(header, dict):
                header.pop("__metadata__", None)
                return header, 8 + length
        stream.seek(0)
        is_pointer = stream.read(40).startswith(b"version https://git-lfs")
    hint = " (it is a Git LFS pointer: run git lfs pull)" if is_pointer else ""
    message = f"{file} is not a safetensors file{hint}"
    raise Unsupported("WEIGHTS_UNREADABLE", message, field="model")
