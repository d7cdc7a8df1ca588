"""A model folder, read tensor by tensor: plain reads, so that memory holds what is used.

(Memory-mapped files count towards a process until something needs the room.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.errors import NotFound, Unsupported
from cluster.models.weights import read_header, weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # in the file
    num_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and the name by which errors and manifests call it."""

    called: str
    folder: Path

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Every tensor by name; raises Unsupported for types that hold no plain numbers."""
        found: dict[str, Entry] = {}
        for file in weight_files(self.folder, called=self.called):
            tensors, data_start = read_header(file)
            for name, told in tensors.items():
                if told["dtype"] not in DTYPES:
                    message = f"{self.called}: {name} is {told['dtype']}; expected plain numbers"
                    raise Unsupported("MERGE_DTYPE", message, field="model")
                start, end = told["data_offsets"]
                dtype, shape = DTYPES[told["dtype"]], tuple(told["shape"])
                if end - start != math.prod(shape) * dtype.itemsize:
                    message = f"{self.called}: {name} has {end - start} bytes for {shape}"
                    raise Unsupported("WEIGHTS_UNREADABLE", message, field="model")
                found[name] = Entry(file, dtype, shape, data_start + start, end - start)
        return found

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` as it is written."""
        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            message = f"{self.called}: config.json is not JSON: {error}"
            raise Unsupported("MODEL_UNSUPPORTED", message, field="model") from None
        assert isinstance(config, dict), "transformers writes a mapping"
        return config

    @cached_property
    def normalized_config(self) -> dict[str, Any]:
        """The same with every default filled in, so that files of any age compare."""
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(
                self.folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # each architecture checks its file in its own way
            message = f"{self.called}: config.json cannot be used: {error}"
            raise Unsupported("MODEL_UNSUPPORTED", message, field="model") from error
        config: dict[str, Any] = found.to_dict()
        return config

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(entry.num_bytes for entry in self.entries.values())

    def read(self, name: str) -> Tensor:
        """One tensor, in its own type; raises NotFound where the file ends before it does."""
        entry = self.entries[name]
        buffer = torch.empty(entry.num_bytes, dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            view = memoryview(buffer.numpy().data)
            while view:
                num_read = file.readinto(view)
                if not num_read:
                    message = f"{self.called}: {entry.file.name} ends within {name}"
                    raise NotFound("WEIGHTS_INCOMPLETE", message, field="model")
                view = view[num_read:]
        return buffer.view(entry.dtype).reshape(entry.shape)
