"""The distribution of the next token, told in part or whole instead of being drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cluster.distribution import Distribution
from cluster.engine.law import log_warp
from cluster.engine.masks import mask
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
    logprobs = row.numpy()
    ids = np.flatnonzero(logprobs > -np.inf)  # where NaN is not
    if len(ids) == 0 or np.isnan(logprobs).any():
        return None
    return Distribution(ids, logprobs[ids]).part(want.num_top, want.ids)
