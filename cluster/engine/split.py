"""The runner of a model that is split over several devices, seen from the first one's process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cluster.engine.base import Chunk, Runner
from cluster.engine.pool import Copy
from cluster.engine.shards import Loading, Pass, Shards
from cluster.errors import InternalError, InvalidRequest, Unsupported

Load = Callable[[Loading, torch.device, int], Runner]  # with how many shards there are


def split_runner(
    loading: Loading, num_shards: int, load: Load, on_lost: Callable[[], None]
) -> SplitRunner:
    """Start the other shards and load this one; `on_lost` is called when any fails later."""
    if loading.device == "cpu" and torch.cuda.is_available():
        message = "a model is split over processors only where no GPU is visible: hide the GPUs"
        raise Unsupported("DEVICE", message, field="device")
    shards = Shards(loading, num_shards)
    try:
        runner = load(loading, shards.device, num_shards)
    except Exception as error:
        shards.close()
        if shards.loss and str(error) not in shards.loss:  # this error is but its echo
            raise InternalError("SHARD_LOST", shards.loss) from error
        raise
    shards.loaded(on_lost)
    return SplitRunner(runner, shards)


def share_of(kv_memory_bytes: int | None, num_shards: int) -> int:
    """One shard's part of a replica's memory for keys and values."""
    if kv_memory_bytes is None:
        message = f"expected a size: {num_shards} devices must agree on how much they keep"
        raise InvalidRequest("KV_MEMORY", message, field="kv_memory_bytes")
    return kv_memory_bytes // num_shards


class SplitRunner:
    """Carries out `Runner` over all shards: the others do what this one's runner does."""

    def __init__(self, runner: Runner, shards: Shards) -> None:
        self._runner = runner
        self._shards = shards
        self.vocab_size = runner.vocab_size
        self.max_context = runner.max_context
        self.num_pages = runner.num_pages
        self.page_size = runner.page_size
        self.shares_rows = runner.shares_rows

    @property
    def states(self) -> Tensor | None:
        return self._runner.states

    @property
    def is_alive(self) -> bool:
        return self._shards.is_alive

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        with self._shards.telling(Pass(chunks=chunks)):
            return self._runner.forward(chunks)

    def copy(self, copies: Sequence[Copy]) -> None:
        with self._shards.telling(Pass(copies=copies)):
            self._runner.copy(copies)

    def truncate(self, sequence: int, num_tokens: int, next_id: int) -> int:
        return self._runner.truncate(sequence, num_tokens, next_id)

    def drop(self, sequence: int) -> None:
        self._runner.drop(sequence)

    def close(self) -> None:
        self._shards.close()
