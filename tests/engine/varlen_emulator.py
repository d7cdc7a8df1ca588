"""`torch.nn.attention.varlen.varlen_attn` for paged keys, in plain torch, as its manual reads.

Loops over sequences and heads, and insists on what the flash kernel insists on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object | None = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Query [T, Hq, D], key and value [pages, page_size, Hkv, D] -> [T, Hq, D]."""
    assert num_splits == 1, "more splits leave sequences unwritten"
    assert return_aux is None
    assert block_table is not None
    assert seqused_k is not None
    assert cu_seq_k is not None
    for tensor in (cu_seq_q, cu_seq_k, seqused_k, block_table):
        assert tensor.dtype == torch.int32
        assert tensor.device == query.device
    num_sequences, num_heads, num_kv = len(seqused_k), query.shape[1], key.shape[2]
    assert cu_seq_q.shape == cu_seq_k.shape == (num_sequences + 1,)
    assert block_table.shape[0] == num_sequences
    assert cu_seq_q[0] == 0
    assert cu_seq_q[-1] == query.shape[0]
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    assert max_q >= int(cu_seq_q.diff().max())
    assert max_k >= int(seqused_k.max())
    assert enable_gqa == (num_heads != num_kv)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert int(block_table.min()) >= 0
    assert int(block_table.max()) < key.shape[0]
    out = torch.full_like(query, float("nan"))
    for i in range(num_sequences):
        begin, end, used = int(cu_seq_q[i]), int(cu_seq_q[i + 1]), int(seqused_k[i])
        if begin == end:
            continue
        rows_k = key[block_table[i].long()].flatten(0, 1)[:used]
        rows_v = value[block_table[i].long()].flatten(0, 1)[:used]
        where_k = torch.arange(used)
        where_q = torch.arange(end - begin)[:, None] + used - (end - begin)  # ends are aligned
        seen = torch.ones(end - begin, used, dtype=torch.bool)
        left, right = window_size
        if left >= 0:
            seen &= where_k >= where_q - left
        if right >= 0:
            seen &= where_k <= where_q + right
        for head in range(num_heads):
            kv = head * num_kv // num_heads
            scores = query[begin:end, head].float() @ rows_k[:, kv].float().T
            scores = scores * (query.shape[2] ** -0.5 if scale is None else scale)
            weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
            out[begin:end, head] = (weights @ rows_v[:, kv].float()).to(query.dtype)
    return out
