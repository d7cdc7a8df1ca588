"""From small host lists to tensors on the model's device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def select(rows: Tensor, chosen: list[int]) -> Tensor:
    if len(chosen) == rows.shape[0]:
        return rows
    return rows.index_select(0, on_device(chosen, torch.int64, rows.device))


def on_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small host list as a tensor there; from pinned memory, so that nothing waits for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
