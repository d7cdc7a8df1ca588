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

from cluster.engine.base import MAX_EXTENSION_TOKENS, Chunk

_QUERY_SIZES = (1, 4, MAX_EXTENSION_TOKENS)


@dataclass(slots=True)
class Group:
    """Tokens that attend in one call: several short chunks, or one long one.

    Short chunks go together if alike in padded queries and padded keys. Both depend on the chunk
    alone, so the shapes a sequence is computed in do not depend on what else is in the batch.
    """

    begin: int  # its tokens are [begin, end) of the packed row
    end: int
    pages: Tensor  # [chunks, pages], padded with each chunk's last page
    positions: Tensor  # [chunks, queries], padded with each chunk's last
    spread: Tensor | None = (
        None  # [chunks * queries]: the token that each is; None: it is packed so
    )
    kept: Tensor | None = None  # [end - begin]: the query that each token is


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


@dataclass(slots=True)
class _Shape:
    """Which chunks make a group, and what each of them is padded to."""

    members: list[int]
    num_queries: int
    num_pages: int


def build_batch(
    chunks: Sequence[Chunk], page_size: int, device: torch.device, *, varlen: bool
) -> Batch:
    """Pack the chunks and move everything in one transfer."""
    if varlen:
        max_queries = max(len(chunk.ids) for chunk in chunks)
        max_keys = max(chunk.start + len(chunk.ids) for chunk in chunks)
        parts = varlen_parts(chunks, page_size, max(len(chunk.pages) for chunk in chunks))
        return varlen_batch(move(parts, device), max_queries, max_keys)
    shapes = _shapes(chunks, page_size)
    order = [i for shape in shapes for i in shape.members]
    parts = [*_pack(chunks, order, page_size), *_group_tables(chunks, shapes)]
    ids, positions, slots, logit_tokens, *there = move(parts, device)
    batch = Batch(ids[None], positions[None], slots, logit_tokens)
    end = 0
    for shape, table, spread, kept in zip(
        shapes, there[::3], there[1::3], there[2::3], strict=True
    ):
        begin, end = end, end + sum(len(chunks[i].ids) for i in shape.members)
        group = Group(begin, end, table.view(-1, shape.num_pages), positions[begin:end])
        if len(spread):
            group.spread, group.kept = spread, kept
            group.positions = group.positions.index_select(0, spread)
        group.positions = group.positions.view(-1, shape.num_queries)
        batch.groups.append(group)
    return batch


def num_padded_keys(num_keys: int) -> int:
    """A length rounded up to 64, 96, 128, 192, 256 ...: few sizes, at most half of it wasted."""
    size = 64
    while size < num_keys:
        size *= 2
    return size * 3 // 4 if num_keys <= size * 3 // 4 and size > 64 else size


def num_padded_queries(num: int) -> int:
    """1, 4 or 16 for short chunks: four rows take hardly longer than two. Long ones stay."""
    return next((size for size in _QUERY_SIZES if num <= size), num)


def _shapes(chunks: Sequence[Chunk], page_size: int) -> list[_Shape]:
    """How the chunks attend: the short ones side by side, then each long one alone."""
    short: dict[tuple[int, int], _Shape] = {}
    long: list[_Shape] = []
    for i, chunk in enumerate(chunks):
        num_keys = chunk.start + len(chunk.ids)
        num_queries = num_padded_queries(len(chunk.ids))
        if len(chunk.ids) <= MAX_EXTENSION_TOKENS:
            num_pages = -(-num_padded_keys(num_keys) // page_size)
            alike = short.setdefault((num_queries, num_pages), _Shape([], num_queries, num_pages))
            alike.members.append(i)
        else:
            long.append(_Shape([i], num_queries, -(-num_keys // page_size)))
    return [*short.values(), *long]


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


def _group_tables(chunks: Sequence[Chunk], shapes: Sequence[_Shape]) -> list[array[int]]:
    """Per group three: its chunks' pages, padded with their own last page, so that no other's rows
    are read; its `spread`; its `kept`. The last two are empty where nothing is padded.
    """
    tables = []
    for shape in shapes:
        table, spread, kept = array("q"), array("q"), array("q")
        begin = 0
        for place, i in enumerate(shape.members):
            pages = chunks[i].pages[: shape.num_pages]
            table.extend(pages)
            table.extend(pages[-1:] * (shape.num_pages - len(pages)))
            num, first = len(chunks[i].ids), place * shape.num_queries
            spread.extend(range(begin, begin + num))
            spread.extend([begin + num - 1] * (shape.num_queries - num))
            kept.extend(range(first, first + num))
            begin += num
        is_padded = len(spread) > begin
        tables += [table, spread if is_padded else array("q"), kept if is_padded else array("q")]
    return tables


def varlen_parts(chunks: Sequence[Chunk], page_size: int, max_pages: int) -> list[array[int]]:
    """For `varlen_batch`, as many pages for each chunk."""
    num_queries = [len(chunk.ids) for chunk in chunks]
    num_keys = [chunk.start + len(chunk.ids) for chunk in chunks]
    table, none = array("q"), array("q", [0]) * max_pages
    for chunk in chunks:
        table.extend(chunk.pages[:max_pages])
        table.extend(none[len(chunk.pages) :])
    return [
        *_pack(chunks, range(len(chunks)), page_size),
        array("q", accumulate(num_queries, initial=0)),
        array("q", accumulate(num_keys, initial=0)),
        array("q", num_keys),
        table,
    ]


def varlen_batch(parts: Sequence[Tensor], max_queries: int, max_keys: int) -> Batch:
    """Of `varlen_parts`, moved; they are read, and none of them on the host."""
    ids, positions, slots, logit_tokens, *tables = parts
    cu_queries, cu_keys, num_keys, pages = (table.to(torch.int32) for table in tables)
    pages = pages.view(len(num_keys), -1)
    varlen = Varlen(cu_queries, cu_keys, num_keys, pages, max_queries, max_keys)
    return Batch(ids[None], positions[None], slots, logit_tokens, varlen=varlen)


def move(
    parts: Sequence[array[int]], device: torch.device, into: Tensor | None = None
) -> list[Tensor]:
    """All parts through one host buffer; what comes back are views of one tensor there, or of
    `into`, if that is given.
    """
    buffer = array("q")
    for part in parts:
        buffer.extend(part)
    host = torch.frombuffer(buffer, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    if into is None:
        there = host.to(device, non_blocking=True)
    else:
        there = into.copy_(host, non_blocking=True)
    return list(there.split_with_sizes([len(part) for part in parts]))
