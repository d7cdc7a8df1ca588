"""The sampling law: temperature, then top-k, then top-p, then min-p, on a batch of unlike rows.

Each applies to the distribution left by the one before, renormalised at the end. Temperature 0 is
the argmax, lowest id on ties. No truncation separates equals: tokens tied with the last one kept by
top-k or top-p are kept too, so the set never depends on how a sort orders them (in bfloat16, ties
are everyday). Top-p keeps the token that crosses the threshold; min-p keeps what has at least min_p
times the largest probability.

Every truncation is a cut-off on the scaled logits, found among the largest candidates; the
vocabulary is never sorted, save for a row whose candidates hold too little mass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.engine.host import on_device, select
from cluster.engine.types import SamplingParams

NUM_CANDIDATES = 1024  # how many of the largest logits top-p looks at before it sorts them all

_COLDEST = 1e-20  # what divides by less would not be a float32


def log_warp(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Log-probabilities [B, V] in id order under each row's law; NaN where none is finite."""
    scaled, _ = scale(logits.float(), params)
    cutoff, short = cutoffs(scaled, params, NUM_CANDIDATES)
    if short is not None and bool(short.any()):
        cutoff, _ = cutoffs(scaled, params, scaled.shape[1])
    logprobs = torch.log_softmax(cut(scaled, cutoff), dim=-1)
    if greedy := greedy_rows(params):
        index = on_device(greedy, torch.int64, logits.device)
        best = select(logits, greedy).argmax(dim=-1)
        one_hot = torch.nn.functional.one_hot(best, logits.shape[1])
        failed = logprobs[index].isnan().any(dim=-1, keepdim=True)
        logprobs.index_copy_(0, index, one_hot.float().log().masked_fill(failed, math.nan))
    return logprobs


def warp(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [B, V] in id order under each row's law; NaN where no logit is finite."""
    return log_warp(logits, params).exp()


def scale(logits: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """(logits - max) / temperature, so that the best is 0 at any temperature; and max."""
    largest = logits.amax(dim=-1)
    scaled = logits - largest[:, None]
    if any(p.temperature not in (0.0, 1.0) for p in params):
        divisors = [max(p.temperature, _COLDEST) if p.temperature > 0 else 1.0 for p in params]
        scaled.div_(on_device(divisors, torch.float32, logits.device)[:, None])
    return scaled, largest


def cutoffs(
    scaled: Tensor, params: Sequence[SamplingParams], num_candidates: int
) -> tuple[Tensor | None, Tensor | None]:
    """Each row's smallest scaled logit kept, and whether it could not be found (None: no row).

    Top-p adds up the largest candidates until they hold top_p of what top-k left.
    """
    size, device = scaled.shape[1], scaled.device
    floors = [math.log(p.min_p) if p.min_p > 0 < p.temperature else -math.inf for p in params]
    top_k = [p.top_k if 0 < p.top_k < size and p.temperature > 0 else 0 for p in params]
    top_p = [p.top_p if p.top_p < 1 and p.temperature > 0 else math.inf for p in params]
    rows = [i for i in range(len(params)) if top_k[i] or top_p[i] < 1]
    if not rows and max(floors) == -math.inf:
        return None, None
    cutoff = on_device(floors, torch.float32, device)
    if not rows:
        return cutoff, None
    width = min(max(top_k[i] or num_candidates for i in rows), size)
    chosen = select(scaled, rows)
    candidates = chosen.topk(width, dim=-1).values
    ks = on_device([top_k[i] for i in rows], torch.int64, device)[:, None]
    kth = candidates.gather(1, (ks - 1).clamp(min=0))
    found = torch.where(ks > 0, kth, -math.inf)
    short = None
    if any(top_p[i] < 1 for i in rows):
        ps = on_device([top_p[i] for i in rows], torch.float64, device)[:, None]
        left = cut(chosen, found[:, 0]).exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
        mass = candidates.exp().cumsum(dim=-1, dtype=torch.float64)
        crossing = (mass < ps * left).sum(dim=-1, keepdim=True)
        last = candidates.gather(1, crossing.clamp(max=width - 1))
        found = torch.where(crossing < width, torch.maximum(found, last), found)
        if width < size and any(top_p[i] < 1 and not top_k[i] for i in rows):
            missing = ((crossing == width) & (ks == 0) & (ps < 1))[:, 0]
            index = on_device(rows, torch.int64, device)
            short = torch.zeros(len(params), dtype=torch.bool, device=device)
            short.index_copy_(0, index, missing)
    index = on_device(rows, torch.int64, device)
    cutoff.index_copy_(0, index, torch.maximum(cutoff.index_select(0, index), found[:, 0]))
    return cutoff, short


def cut(scaled: Tensor, cutoff: Tensor | None) -> Tensor:
    return scaled if cutoff is None else scaled.masked_fill(scaled < cutoff[:, None], -math.inf)


def greedy_rows(params: Sequence[SamplingParams]) -> list[int]:
    return [i for i, p in enumerate(params) if p.temperature <= 0]
