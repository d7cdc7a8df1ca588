"""Safetensors files written tensor by tensor: headers first, since all sizes are known before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from cluster.merging.checkpoint import DTYPE_NAMES
from cluster.merging.plan import Step
from cluster.models.weights import INDEX, SINGLE

MAX_SHARD_BYTES = 5_000_000_000  # as transformers writes them

_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class _Shard:
    file: Path
    header: bytes
    names: tuple[str, ...]
    num_bytes: int  # of the tensors


class WeightWriter:
    """Writes the tensors of a plan in its order; the folder is the caller's to remove."""

    def __init__(
        self, folder: Path, steps: Iterable[Step], max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> None:
        steps = list(steps)
        self._shards = list(_shards(folder, steps, max_shard_bytes))
        self._folder = folder
        self._num_bytes = sum(step.num_bytes for step in steps)
        self._next = iter([(shard, name) for shard in self._shards for name in shard.names])
        self._open: tuple[_Shard, BinaryIO] | None = None

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open[1].close()

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor."""
        shard, expected = next(self._next)
        assert name == expected, f"{name} is written where {expected} is due"
        if self._open is None or self._open[0] is not shard:
            self._close()
            self._open = (shard, shard.file.open("wb", buffering=0))
            _write(self._open[1], memoryview(shard.header))
        raw = tensor.contiguous().reshape(-1).view(torch.uint8)
        _write(self._open[1], raw.numpy().data)

    def finish(self) -> None:
        """All tensors are written: on the disk for certain, and the index with them."""
        self._close()
        assert next(self._next, None) is None, "every tensor of the plan is written"
        self._write_index()

    def sketch(self) -> None:
        """Files of the right size whose tensors are holes: what headers say is all there is."""
        for shard in self._shards:
            with shard.file.open("wb") as file:
                file.write(shard.header)
                file.truncate(len(shard.header) + shard.num_bytes)
        self._write_index()

    def _close(self) -> None:
        if self._open is not None:
            os.fsync(self._open[1].fileno())
            self._open[1].close()
            self._open = None

    def _write_index(self) -> None:
        if len(self._shards) > 1:
            index = {
                "metadata": {"total_size": self._num_bytes},
                "weight_map": {name: s.file.name for s in self._shards for name in s.names},
            }
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(folder: Path, steps: list[Step], max_shard_bytes: int) -> Iterable[_Shard]:
    groups: list[list[Step]] = [[]]
    size = 0
    for step in steps:
        if groups[-1] and size + step.num_bytes > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(step)
        size += step.num_bytes
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        file = folder / (SINGLE if len(groups) == 1 else name)
        num_bytes = sum(step.num_bytes for step in group)
        yield _Shard(file, _header(group), tuple(step.name for step in group), num_bytes)


def _header(steps: list[Step]) -> bytes:
    told: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for step in steps:
        end = start + step.num_bytes
        told[step.name] = {
            "dtype": DTYPE_NAMES[step.dtype],
            "shape": list(step.entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
