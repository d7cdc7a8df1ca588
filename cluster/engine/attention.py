"""Attention over the page pool, as the function that transformers' attention interface calls.

`ATTENTION` is registered without a mask function, so models build no masks and hand us their
queries, keys and values after positions were applied. New keys and values are written to the pool
first, then each query attends to its own sequence's rows, in one of two ways:

- *gathered*: pages are copied together and attended by SDPA with a mask (in plain arithmetic where
  SDPA cannot: softcap, sinks). Any device, any dtype.
- *varlen*: the flash kernel reads the pages in place. CUDA, half precision. Always with one
  split: with several it leaves sequences unwritten (pytorch#194167), and one makes results
  independent of the batch.

What a pass needs beyond queries, keys and values travels in a thread-local context, because
models pass on no arguments they do not know. Nothing is rebuilt per layer: masks are made once
per step and window.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from cluster.engine.batch import Batch
from cluster.engine.rows import FlatRows, HeadRows, Rows
from cluster.errors import Unsupported

ATTENTION = "cuvee"


@dataclass(slots=True)
class Call:
    """What a layer asks for beyond queries, keys and values."""

    layer: int
    scaling: float
    window: int | None  # how many of the last keys a query sees, itself included
    softcap: float | None
    sinks: Tensor | None  # [query heads]: logits that take weight and give no value


class Context(Protocol):
    """Carries out the attention of all layers of one forward pass."""

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query [T, Hq, D], key [T, Hkv, D], value [T, Hkv, Dv] -> [1, T, Hq, Dv]."""
        ...


_active = threading.local()


@contextmanager
def attending(context: Context) -> Iterator[None]:
    """Let `context` carry out the attention of this thread's forward pass."""
    _active.context = context
    try:
        yield
    finally:
        _active.context = None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Called per layer: query [1, Hq, T, D], key, value [1, Hkv, T, D] -> [1, T, Hq, Dv]."""
    layer = getattr(module, "layer_idx", None)
    causal = kwargs.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    strange = attention_mask is not None or kwargs.get("position_bias") is not None or not causal
    if layer is None or strange or query.shape[0] != 1:
        what = type(module).__name__
        raise Unsupported("ATTENTION_NOT_PAGED", f"{what} is not plain causal self-attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(layer, float(scale), sliding_window, softcap, s_aux)
    context: Context = _active.context
    query, key, value = query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
    return context.attend(call, query, key, value), None


AttentionInterface.register(ATTENTION, _attention)


@dataclass(slots=True)
class _View:
    """The part of a group's pages that a window lets its queries see."""

    cells: Tensor  # of `HeadRows`: the heads of its pages
    mask: Tensor  # [chunks, 1, queries * query heads on each key head, S], added to the scores


@dataclass(slots=True)
class PagedAttention:
    """One step's attention over the pool."""

    rows: dict[int, Rows]
    page_size: int
    batch: Batch
    _views: dict[tuple[int, int | None, int, int], _View] = field(default_factory=dict)
    _places: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = self.rows[call.layer]
        if isinstance(rows, FlatRows):
            rows.keys.index_copy_(0, self.batch.slots, key)
            rows.values.index_copy_(0, self.batch.slots, value)
            return self._attend_varlen(call, query, rows)
        new = [torch.cat([key, value], dim=1)] if rows.is_joined else [key, value]
        rows.write(self._places_in(rows), *new)
        return self._attend_groups(call, query, rows)

    def attend_joined(self, call: Call, query: Tensor, joined: Tensor) -> Tensor:
        """The same, of keys and values in one piece: [T, Hkv + Hkv, D]."""
        rows = self.rows[call.layer]
        if isinstance(rows, FlatRows):
            return self.attend(call, query, *joined.chunk(2, dim=1))
        rows.write(self._places_in(rows), joined)
        return self._attend_groups(call, query, rows)

    def _attend_groups(self, call: Call, query: Tensor, rows: HeadRows) -> Tensor:
        groups = self.batch.groups
        if len(groups) == 1:
            return self._attend_group(call, query, rows, 0)[None]
        parts = [
            self._attend_group(call, query[group.begin : group.end], rows, i)
            for i, group in enumerate(groups)
        ]
        return torch.cat(parts)[None]

    def _places_in(self, rows: HeadRows) -> Tensor:
        """Where the pass's rows go; found once for all layers with as many heads."""
        if rows.num_heads not in self._places:
            self._places[rows.num_heads] = rows.places(self.batch.slots)
        return self._places[rows.num_heads]

    def _attend_varlen(self, call: Call, query: Tensor, rows: FlatRows) -> Tensor:
        tables, paged = self.batch.varlen, (-1, self.page_size, *rows.keys.shape[1:])
        assert tables is not None
        left = -1 if call.window is None else call.window - 1
        out = varlen_attn(
            query,
            rows.keys.view(paged),
            rows.values.view(paged),
            tables.cu_queries,
            tables.cu_keys,
            tables.max_queries,
            tables.max_keys,
            scale=call.scaling,
            window_size=(left, 0),
            enable_gqa=query.shape[1] != rows.keys.shape[1],
            seqused_k=tables.num_keys,
            block_table=tables.pages,
            num_splits=1,
        )
        assert isinstance(out, Tensor)
        return out[None]

    def _attend_group(self, call: Call, query: Tensor, rows: HeadRows, index: int) -> Tensor:
        """One product of [B, Hkv, rows, D] and [B, Hkv, S, D], rows being queries times the query
        heads on each key head: no key is copied for its query heads. Gives [tokens, Hq, Dv].
        """
        group = self.batch.groups[index]
        num_chunks, num_queries = group.positions.shape
        num_heads, key_dim = query.shape[1:]
        view = self._view(index, call.window, num_heads, rows, query.dtype)
        k, v = rows.gather(view.cells, num_chunks, query.dtype)
        num_kv, value_dim = k.shape[1], v.shape[-1]
        if group.spread is not None:
            query = query.index_select(0, group.spread)
        shape = num_chunks, num_queries, num_kv, num_heads // num_kv, key_dim
        q = query.view(shape).transpose(1, 2).reshape(num_chunks, num_kv, -1, key_dim)
        sinks = call.sinks
        if sinks is not None:
            sinks = sinks.view(1, num_kv, 1, -1).expand(-1, -1, num_queries, -1).flatten(2)
            sinks = sinks[..., None]
        out = _sdpa(q, k, v, view.mask, call, sinks).view(
            *shape[:1], num_kv, num_queries, -1, value_dim
        )
        out = out.transpose(1, 2).reshape(-1, num_heads, value_dim)
        return out if group.kept is None else out.index_select(0, group.kept)

    def _view(
        self, index: int, window: int | None, num_heads: int, rows: HeadRows, dtype: torch.dtype
    ) -> _View:
        """What a group sees through a window, made by the first layer of its kind that asks."""
        key = index, window, num_heads, rows.num_heads
        if key in self._views:
            return self._views[key]
        group, page_size = self.batch.groups[index], self.page_size
        num_pages, num_queries = group.pages.shape[1], group.positions.shape[1]
        pages, positions = group.pages, group.positions
        first_page = positions.new_zeros(len(pages), 1)
        num_seen = num_pages if window is None else (window + num_queries - 3) // page_size + 2
        if window is not None and num_seen < num_pages:
            first_page = (positions[:, :1] - window + 1).clamp(min=0) // page_size
            columns = first_page + torch.arange(num_seen, device=pages.device)
            pages = pages.gather(1, columns.clamp(max=num_pages - 1))
        num_rows = pages.shape[1] * page_size
        where = first_page * page_size + torch.arange(num_rows, device=pages.device)
        seen = where[:, None, :] <= positions[:, :, None]  # [chunks, queries, S]
        if window is not None:
            seen &= where[:, None, :] > positions[:, :, None] - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=pages.device)
        mask.masked_fill_(~seen, float("-inf"))
        num_kv = rows.num_heads // (1 + rows.is_joined)
        mask = mask.repeat_interleave(num_heads // num_kv, dim=1)[:, None]
        view = self._views[key] = _View(rows.cells(pages), mask)
        return view


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, call: Call, sinks: Tensor | None
) -> Tensor:
    """Query [B, H, L, D], key [B, H, S, D], value [B, H, S, Dv], mask -> [B, H, L, Dv]."""
    if call.softcap is None and sinks is None:
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=call.scaling
        )
    scores = torch.matmul(q, k.transpose(-1, -2)) * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.float() + mask
    if sinks is not None:
        column = sinks.float().expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return torch.matmul(weights.to(v.dtype), v)
