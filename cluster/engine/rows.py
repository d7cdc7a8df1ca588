"""The key-value pool itself: one piece of memory, or two, per layer; pages are rows in a line."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer keeps per token."""

    num_heads: int  # of keys and values
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class Rows:
    """One layer's pool. Joined: a row has the keys of all heads, then the values, side by side.

    The gathered way copies a page's keys and values at once then; the flash kernel is given two
    pools, each in one piece.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        shape: LayerShape,
        device: torch.device,
        *,
        joined: bool,
    ) -> None:
        self.dtype = shape.dtype
        size, num_heads = num_pages * page_size, shape.num_heads
        widths = num_heads * shape.key_dim, num_heads * shape.value_dim
        self.tensors = [  # [slots, width]
            torch.zeros(size, width, dtype=shape.dtype, device=device)
            for width in ([sum(widths)] if joined else widths)
        ]
        keys, values = self.tensors[0].split_with_sizes(widths, dim=1) if joined else self.tensors
        self.keys = keys.view(size, num_heads, shape.key_dim)  # [slots, heads, dim]
        self.values = values.view(size, num_heads, shape.value_dim)
        self.pages = self.tensors[0].view(num_pages, -1) if joined else None
