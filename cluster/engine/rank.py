"""The distribution of the next token, told in part or whole instead of being drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cluster.distribution import LEAST_REST, Distribution
from cluster.engine.sampler import log_warp, mask
from cluster.engine.types import Rank, SamplingParams


def rank(
    logits: Tensor, wants: Sequence[Rank], allowed: Sequence[bytes | None]
) -> list[Distribution | None]:
    """What each row [B, V] is asked for, of the ids that its bits allow.

    None for a row that is no distribution (not finite).
    """
    possible = mask(logits.float(), [want.banned for want in wants], allowed)
    laws = [want.params or SamplingParams() for want in wants]
    rows = log_warp(possible, laws).double().cpu()
    return [_told(row, want) for row, want in zip(rows, wants, strict=True)]


def _told(row: Tensor, want: Rank) -> Distribution | None:
    possible = row > -torch.inf
    num_possible = int(possible.sum())
    if num_possible == 0 or bool(row.isnan().any()):
        return None
    if 0 < want.num_top < num_possible:
        best = row.topk(want.num_top).indices.numpy()
    elif num_possible == len(row):
        return Distribution(np.arange(len(row)), row.numpy())
    else:
        best = possible.nonzero()[:, 0].numpy()
    ids = np.union1d(best, np.asarray(want.ids, dtype=np.int64))
    logprobs = row.numpy()[ids]
    is_all = int((logprobs > -np.inf).sum()) == num_possible
    rest = 0.0 if is_all else max(LEAST_REST, 1.0 - float(np.exp(logprobs).sum()))
    return Distribution(ids, logprobs, rest)
