"""A CUDA graph without CUDA: a pass recorded kernel by kernel, and done again on the same memory.

What Python saw while recording (shapes, numbers, which kernels) is fixed, and to read a tensor on
the host is refused, as in a capture. Graphs share memory: before a replay, all that any graph of
the same tape ever computed is spoilt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cluster.engine.graphs import Outputs, Replay

from .varlen_emulator import varlen_attn

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item")


def reads_the_host(name: str) -> bool:
    """Whether a kernel's result cannot be known without waiting for the device."""
    return name.split("::")[1].split(".")[0] in READS


@torch.library.custom_op("cuvee_tests::varlen", mutates_args=())
def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: list[int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    num_splits: int,
) -> torch.Tensor:
    return varlen_attn(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        scale=scale,
        window_size=(window[0], window[1]),
        enable_gqa=enable_gqa,
        seqused_k=seqused_k,
        block_table=block_table,
        num_splits=num_splits,
    )


@_varlen.register_fake
def _like(query: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(query)


def varlen_kernel(*tensors: Any, window_size: tuple[int, int], **options: Any) -> Tensor:
    """The emulated flash kernel as one kernel."""
    out: Tensor = _varlen(*tensors, window=list(window_size), **options)
    return out


class Tape:
    """Captures, as `CudaCapture` does; `leave_out` names a kernel that its replays forget."""

    def __init__(self, leave_out: str = "nothing") -> None:
        self.num_replays: dict[int, int] = {}  # by rows of logits
        self._leave_out = leave_out
        self._made: list[Tensor] = []

    def __call__(self, run: Callable[[], Outputs]) -> Replay:
        with _Recording() as recording:
            outputs = run()
        self._made += recording.made
        size = len(outputs[0])
        self.num_replays[size] = 0

        def replay() -> Outputs:
            for tensor in self._made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 1 << 30)
            for func, args, kwargs, result in recording.calls:
                if self._leave_out not in str(func):
                    _keep(result, func(*args, **kwargs))
            self.num_replays[size] += 1
            return outputs

        return replay


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: list[Tensor] = []  # what kernels computed; views of it are none

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reads_the_host(func.name()):
            raise RuntimeError(f"{func} is not permitted while capturing")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        there = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.made += [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and _memory(leaf) not in there
        ]
        return result


def _keep(result: Any, again: Any) -> None:
    """Into the memory of the first time, where it is not a view or a change of what was there."""
    for kept, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
        if isinstance(kept, Tensor) and _memory(kept) != _memory(new):
            kept.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
