"""Which ids a row of logits may give: banned ones, and bits of those that a format allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.engine.host import on_device, select


def mask(
    logits: Tensor, banned: Sequence[tuple[int, ...]], allowed: Sequence[bytes | None]
) -> Tensor:
    """Each row without its banned ids, and of a row with `allowed` those ids alone."""
    pairs = [(i, token) for i, tokens in enumerate(banned) for token in tokens]
    if pairs:
        where = on_device(pairs, torch.int64, logits.device)
        barred = logits.new_full((), -math.inf)
        logits = logits.index_put((where[:, 0], where[:, 1]), barred)
    masks = [bits for bits in allowed if bits is not None]
    if masks:
        chosen = [i for i, bits in enumerate(allowed) if bits is not None]
        kept = _unpacked(masks, logits.shape[1], logits.device)
        masked = select(logits, chosen).masked_fill(~kept, -math.inf)
        index = on_device(chosen, torch.int64, logits.device)
        logits = logits.index_copy(0, index, masked)
    return logits


def _unpacked(masks: Sequence[bytes], num_ids: int, device: torch.device) -> Tensor:
    """Booleans [masks, num_ids]; the bits travel packed, all masks as one."""
    num_bytes = -(-num_ids // 8)
    assert all(len(bits) >= num_bytes for bits in masks), "a mask that does not cover the ids"
    host = torch.frombuffer(
        bytearray().join(bits[:num_bytes] for bits in masks), dtype=torch.uint8
    ).view(len(masks), num_bytes, 1)
    if device.type == "cuda":
        host = host.pin_memory()
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    bits = (host.to(device, non_blocking=True) >> shifts).bitwise_and_(1)
    return bits.bool().view(len(masks), -1)[:, :num_ids]
