"""The key-value pool itself: one layer's memory, laid out for the way its pages are read.

A slot is a place in the pool, `page * page_size + row`. What this module does not know: sequences,
and which slots are valid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.engine.pool import Copy


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


class FlatRows:
    """Row after row, keys and values apart: the flash kernel reads them where they are."""

    def __init__(
        self, num_pages: int, page_size: int, shape: LayerShape, device: torch.device
    ) -> None:
        size = num_pages * page_size, shape.num_heads
        self.keys = torch.zeros(*size, shape.key_dim, dtype=shape.dtype, device=device)
        self.values = torch.zeros(*size, shape.value_dim, dtype=shape.dtype, device=device)

    def copy(self, copy: Copy) -> None:
        for kept in (self.keys, self.values):
            source = kept[copy.source : copy.source + copy.num_rows]
            kept[copy.target : copy.target + copy.num_rows] = source


class HeadRows:
    """Page after page, in each head after head: gathered heads then lie in one piece each.

    Attention of few queries is twice as fast on such keys. Values are further heads of the same
    tensor where they are as wide as keys, so that both are written, and gathered, at once.
    """

    def __init__(
        self, num_pages: int, page_size: int, shape: LayerShape, device: torch.device
    ) -> None:
        dims = [shape.key_dim, shape.value_dim]
        self.is_joined = shape.key_dim == shape.value_dim
        self.num_heads = shape.num_heads * 2 if self.is_joined else shape.num_heads  # in a tensor
        self._page_size = page_size
        self._tensors = [  # [pages, heads, page_size, dim]
            torch.zeros(num_pages, self.num_heads, page_size, dim, dtype=shape.dtype, device=device)
            for dim in (dims[:1] if self.is_joined else dims)
        ]

    def places(self, slots: Tensor) -> Tensor:
        """Where in a tensor, of rows of one head each, the heads of new rows go: [T * heads]."""
        pages, rows = slots // self._page_size, slots % self._page_size
        heads = torch.arange(self.num_heads, device=slots.device)
        places = (pages[:, None] * self.num_heads + heads) * self._page_size + rows[:, None]
        return places.flatten()

    def cells(self, pages: Tensor) -> Tensor:
        """Where the heads of pages [chunks, pages] are: [chunks * heads * pages]."""
        heads = torch.arange(self.num_heads, device=pages.device)[:, None]
        return (pages[:, None] * self.num_heads + heads).flatten()

    def write(self, places: Tensor, *new: Tensor) -> None:
        """Keys and values [T, heads, dim], or both in one piece where they are joined."""
        for kept, rows in zip(self._tensors, new, strict=True):
            flat = kept.view(-1, kept.shape[-1])
            flat.index_copy_(0, places, rows.reshape(-1, rows.shape[-1]).to(kept.dtype))

    def gather(self, cells: Tensor, num_chunks: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [chunks, heads, rows, dim] of the cells."""
        found = [
            kept.view(-1, self._page_size * kept.shape[-1])
            .index_select(0, cells)
            .to(dtype)
            .view(num_chunks, self.num_heads, -1, kept.shape[-1])
            for kept in self._tensors
        ]
        if self.is_joined:
            return found[0][:, : self.num_heads // 2], found[0][:, self.num_heads // 2 :]
        return found[0], found[1]

    def copy(self, copy: Copy) -> None:
        (source, first), (target, begin) = (
            divmod(slot, self._page_size) for slot in (copy.source, copy.target)
        )
        for kept in self._tensors:
            rows = kept[source, :, first : first + copy.num_rows]
            kept[target, :, begin : begin + copy.num_rows] = rows


Rows = FlatRows | HeadRows
