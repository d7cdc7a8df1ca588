"""From chunks to tensors: host lists become one buffer per step, moved to the device at once.

The chunks are packed into one row of T tokens. The two ways of attending need different metadata:
the gathered way one `Group` per attention call, the varlen way cumulative lengths and a block
table.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from cluster.engine.base import Chunk


@dataclass(slots=True)
class Group:
    """Tokens that attend in one call: one token each of several chunks, or all of one chunk.

    One-token chunks go together if alike in padded length, which depends on the chunk's own length
    only, so the shapes a sequence is computed in do not depend on what else is in the batch.
    """

    begin: int  # its tokens are [begin, end) of the packed row
    end: int
    pages: Tensor  # [chunks, pages], padded with each chunk's last page
    positions: Tensor  # [end - begin]


@dataclass(slots=True)
class Varlen:
    """What `torch.nn.attention.varlen.varlen_attn` takes for paged keys; tensors are int32."""

    cu_queries: Tensor  # [chunks + 1]
    cu_keys: Tensor  # [chunks + 1]
    num_keys: Tensor  # [chunks]
    pages: Tensor  # [chunks, pages], padded with 0
    max_queries: int
    max_keys: int


@dataclass(slots=True)
class Batch:
    """One forward pass; tensors are int64."""

    ids: Tensor  # [1, T]
    positions: Tensor  # [1, T]
    slots: Tensor  # [T], where the new rows go
    logit_tokens: Tensor  # packed indices of the tokens whose logits are wanted, in chunk order
    groups: list[Group] = field(default_factory=list)  # for the gathered way
    varlen: Varlen | None = None  # for the varlen way


def build_batch(
    chunks: Sequence[Chunk], page_size: int, device: torch.device, *, varlen: bool
) -> Batch:
    """Pack the chunks and move everything in one transfer."""
    groups = [] if varlen else _group(chunks, page_size)
    order = [i for members, _ in groups for i in members] if groups else list(range(len(chunks)))
    tables = _varlen_tables(chunks) if varlen else _group_tables(chunks, groups)
    ids, positions, slots, logit_tokens, *there = _move(
        [*_pack(chunks, order, page_size), *tables], device
    )
    batch = Batch(ids[None], positions[None], slots, logit_tokens)
    if varlen:
        small = [part.to(torch.int32) for part in there]
        max_queries = max(len(chunk.ids) for chunk in chunks)
        max_keys = max(chunk.start + len(chunk.ids) for chunk in chunks)
        pages = small[3].view(len(chunks), -1)
        batch.varlen = Varlen(small[0], small[1], small[2], pages, max_queries, max_keys)
    end = 0
    for (members, num_pages), table in zip(groups, there, strict=False):
        begin, end = end, end + sum(len(chunks[i].ids) for i in members)
        batch.groups.append(Group(begin, end, table.view(-1, num_pages), positions[begin:end]))
    return batch


def num_padded_keys(num_keys: int) -> int:
    """A length rounded up to 64, 96, 128, 192, 256 ...: few sizes, at most half of it wasted."""
    size = 64
    while size < num_keys:
        size *= 2
    return size * 3 // 4 if num_keys <= size * 3 // 4 and size > 64 else size


def _group(chunks: Sequence[Chunk], page_size: int) -> list[tuple[list[int], int]]:
    """Chunks that attend together and how many pages each is padded to; longest context first."""
    decodes: dict[int, list[int]] = {}
    groups: list[tuple[list[int], int]] = []
    for i, chunk in enumerate(chunks):
        num_keys = chunk.start + len(chunk.ids)
        if len(chunk.ids) == 1:
            decodes.setdefault(-(-num_padded_keys(num_keys) // page_size), []).append(i)
        else:
            groups.append(([i], -(-num_keys // page_size)))
    return [(members, num_pages) for num_pages, members in decodes.items()] + groups


def _pack(chunks: Sequence[Chunk], order: Sequence[int], page_size: int) -> list[array[int]]:
    """Ids, positions, slots in packed order; where the wanted logits are, in chunk order."""
    ids, positions, slots, logit_tokens = array("q"), array("q"), array("q"), array("q")
    ends = [0] * len(chunks)
    for i in order:
        start, pages = chunks[i].start, chunks[i].pages
        where = range(start, start + len(chunks[i].ids))
        ids.extend(chunks[i].ids)
        positions.extend(where)
        slots.extend([pages[p // page_size] * page_size + p % page_size for p in where])
        ends[i] = len(ids)
    for chunk, end in zip(chunks, ends, strict=True):
        logit_tokens.extend(range(end - chunk.num_logits, end))
    return [ids, positions, slots, logit_tokens]


def _group_tables(
    chunks: Sequence[Chunk], groups: Sequence[tuple[list[int], int]]
) -> list[array[int]]:
    """Per group its chunks' pages, padded with their own last page: no other's rows are read."""
    tables = []
    for members, num_pages in groups:
        table = array("q")
        for i in members:
            pages = chunks[i].pages[:num_pages]
            table.extend(pages)
            table.extend(pages[-1:] * (num_pages - len(pages)))
        tables.append(table)
    return tables


def _varlen_tables(chunks: Sequence[Chunk]) -> list[array[int]]:
    num_queries = [len(chunk.ids) for chunk in chunks]
    num_keys = [chunk.start + len(chunk.ids) for chunk in chunks]
    num_pages = max(len(chunk.pages) for chunk in chunks)
    table = array("q")
    for chunk in chunks:
        table.extend(chunk.pages)
        table.extend([0] * (num_pages - len(chunk.pages)))
    return [
        array("q", accumulate(num_queries, initial=0)),
        array("q", accumulate(num_keys, initial=0)),
        array("q", num_keys),
        table,
    ]


def _move(parts: Sequence[array[int]], device: torch.device) -> list[Tensor]:
    """All parts through one host buffer; what comes back are views of one tensor there."""
    buffer = array("q")
    for part in parts:
        buffer.extend(part)
    host = torch.frombuffer(buffer, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    return list(host.to(device, non_blocking=True).split_with_sizes([len(part) for part in parts]))
