"""From logits to tokens: one law, one pass over a batch of unlike rows, one wait for the device.

The draw is an exponential race: of all p / E, E unit exponentials, the largest wins: a draw
from p, exactly (the Gumbel-max trick); first among blocks of ids, then within the winning one, so
that few E are needed. Logits that differ by rounding, as they do between batch shapes, then change
a draw about as rarely as they differ little; inverting the distribution function would add up the
differences of all ids before, and change it hundreds of times as often.

A row whose truncation is not decided by its candidates is done again after the one wait. A row's
result depends on that row alone. This module knows neither seeds nor sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.engine import law
from cluster.engine.host import on_device, select
from cluster.engine.law import cut, cutoffs, greedy_rows, scale
from cluster.engine.masks import mask
from cluster.engine.noise import exponentials
from cluster.engine.types import Doubt, SamplingParams, TokenOutput

NO_TOKEN = -1  # drawn from a row that has nothing to draw: NaN or +inf logits, or all of it -inf

_BLOCK = 128  # ids; part of what makes draws repeatable


@dataclass(slots=True)
class SampleRow:
    """One row of logits to draw from."""

    params: SamplingParams
    key: int  # the draw's 64 random bits
    banned: tuple[int, ...] = ()  # masked before everything, but not in what is reported
    allowed: bytes | None = None  # one bit per id, lowest first: all others are masked likewise
    num_top: int = 0  # how many of the model's best candidates to report
    doubt: Doubt | None = None  # when to report that the model is not sure
    by_id: bool = False  # one race of all ids, not one of blocks and one inside: the same law


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> list[TokenOutput]:
    """Draw one token per row; log-probabilities are the model's, before masks and warping.

    `top` lists the model's best candidates, lowest id first on ties, none of probability zero.
    A row with nothing to draw gives NO_TOKEN and NaN, so that one bad row spoils no other.
    """
    outputs, short = _sample(logits, rows, law.NUM_CANDIDATES)
    if short:
        again = logits.index_select(0, on_device(short, torch.int64, logits.device))
        redone, _ = _sample(again, [rows[i] for i in short], logits.shape[1])
        for i, output in zip(short, redone, strict=True):
            outputs[i] = output
    return outputs


def score(
    logits: Tensor, targets: Sequence[int], params: Sequence[SamplingParams]
) -> list[TokenOutput]:
    """Log-probability of each row's target under its law: -inf where cut off; greedy: 0 or -inf."""
    assert len(targets) == len(params) == logits.shape[0]
    assert all(0 <= target < logits.shape[1] for target in targets)
    if not targets:
        return []
    scaled, _ = scale(logits.float(), params)
    greedy = greedy_rows(params)
    column = on_device(targets, torch.int64, logits.device)[:, None]

    def logprobs(num_candidates: int) -> tuple[Tensor, Tensor]:
        cutoff, short = cutoffs(scaled, params, num_candidates)
        kept = cut(scaled, cutoff)
        logprob = kept.gather(1, column)[:, 0] - torch.logsumexp(kept, dim=-1)
        return logprob, torch.zeros_like(logprob) if short is None else short.float()

    logprob, short = logprobs(law.NUM_CANDIDATES)
    best = logits.argmax(dim=-1) if greedy else short
    values, shorts, bests = torch.stack([logprob.double(), short.double(), best.double()]).tolist()
    if any(shorts):
        values = logprobs(logits.shape[1])[0].tolist()
    for row in greedy:
        if not math.isnan(values[row]):
            values[row] = 0.0 if targets[row] == int(bests[row]) else -math.inf
    return [TokenOutput(t, value) for t, value in zip(targets, values, strict=True)]


def _sample(
    logits: Tensor, rows: Sequence[SampleRow], num_candidates: int
) -> tuple[list[TokenOutput], list[int]]:
    """Outputs of all rows, and the rows whose output is void for want of candidates."""
    assert len(rows) == logits.shape[0]
    if not rows:
        return [], []
    model, params = logits.float(), [row.params for row in rows]
    possible = mask(model, [row.banned for row in rows], [row.allowed for row in rows])
    scaled, largest = scale(possible, params)
    norm, short, greedy = None, None, greedy_rows(params)
    if len(greedy) == len(rows):
        token = possible.argmax(dim=-1)  # the first of equals
    else:
        cutoff, short = cutoffs(scaled, params, num_candidates)
        token, total = _draw(cut(scaled, cutoff), rows)
        if greedy:
            index = on_device(greedy, torch.int64, logits.device)
            token.index_copy_(0, index, possible.index_select(0, index).argmax(dim=-1))
        is_own = possible is model and cutoff is None and all(p.temperature == 1 for p in params)
        norm = total.log_().add_(largest) if is_own else None
    if norm is None:  # the masses drawn from are not the model's own
        norm = torch.logsumexp(model, dim=-1)
    logprob = model.gather(1, token[:, None])[:, 0] - norm
    columns = [token, logprob, ~largest.isfinite()]
    columns += [] if short is None else [short]
    told = torch.stack([column.double() for column in columns])
    doubts = [i for i, row in enumerate(rows) if row.doubt is not None]
    wanted = [i for i, row in enumerate(rows) if row.num_top > 0]
    in_doubt = _in_doubt(_own(model, norm, doubts), [rows[i].doubt for i in doubts])
    num_top = min(max(row.num_top for row in rows), logits.shape[1])
    ids, values = _best(_own(model, norm, wanted), num_top)
    parts = (told, in_doubt, ids, values)
    flat = torch.cat([part.flatten().double() for part in parts if part.numel()])
    return _outputs(rows, flat.tolist(), len(columns), doubts, wanted, num_top)  # the one wait


def _own(model: Tensor, norm: Tensor, chosen: list[int]) -> Tensor:
    """The chosen rows' log-probabilities [n, V], before masks and warping."""
    if not chosen:
        return model[:0]
    return select(model, chosen) - select(norm, chosen)[:, None]


def _outputs(
    rows: Sequence[SampleRow],
    flat: list[float],
    num_columns: int,
    doubts: list[int],
    wanted: list[int],
    num_top: int,
) -> tuple[list[TokenOutput], list[int]]:
    """Take apart what came from the device: columns, doubts, ids and values of the best."""
    n, begin = len(rows), num_columns * len(rows)
    in_doubt = dict(zip(doubts, flat[begin:], strict=False))
    top_ids = begin + len(doubts)
    top_values = top_ids + len(wanted) * num_top
    place = {row: i * num_top for i, row in enumerate(wanted)}
    outputs = []
    for i, row in enumerate(rows):
        top: tuple[tuple[int, float], ...] = ()
        if i in place:
            at = range(place[i], place[i] + min(row.num_top, num_top))
            pairs = ((int(flat[top_ids + j]), flat[top_values + j]) for j in at)
            top = tuple(pair for pair in pairs if pair[1] > -math.inf)
        if flat[2 * n + i]:
            outputs.append(TokenOutput(NO_TOKEN, math.nan))
        else:
            is_unsure = bool(in_doubt.get(i))
            outputs.append(TokenOutput(int(flat[i]), flat[n + i], top, is_unsure))
    return outputs, [i for i in range(n) if flat[3 * n + i]] if num_columns > 3 else []


def _in_doubt(logprobs: Tensor, doubts: Sequence[Doubt | None]) -> Tensor:
    """Which rows of log-probabilities are less sure than their threshold."""
    if not doubts:
        return logprobs.new_empty(0)
    wanted = [doubt for doubt in doubts if doubt is not None]
    entropy = torch.special.entr(logprobs.exp()).sum(dim=-1)
    confidence = logprobs.amax(dim=-1).exp()
    by_entropy = on_device([d.measure == "entropy" for d in wanted], torch.bool, logprobs.device)
    threshold = on_device([d.threshold for d in wanted], torch.float32, logprobs.device)
    return torch.where(by_entropy, entropy > threshold, confidence < threshold)


def _draw(scaled: Tensor, rows: Sequence[SampleRow]) -> tuple[Tensor, Tensor]:
    """The winner of each row's race, first id on ties, never one of probability zero; and the
    sum of the row's masses, exp(scaled). Writes into `scaled`.
    """
    mass, keys = scaled.exp_(), [row.key for row in rows]
    by_id = [i for i, row in enumerate(rows) if row.by_id]
    if not by_id:
        return _race_by_blocks(mass, keys)
    noise = exponentials([keys[i] for i in by_id], mass.shape[1], mass.device)
    winners = (select(mass, by_id) / noise).argmax(dim=-1)
    if len(by_id) == len(rows):
        return winners, mass.sum(dim=-1)
    token, total = _race_by_blocks(mass, keys)
    return token.index_copy_(0, on_device(by_id, torch.int64, mass.device), winners), total


def _race_by_blocks(mass: Tensor, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    num_rows, size = mass.shape
    num_blocks = -(-size // _BLOCK)
    if size % _BLOCK:
        mass = torch.nn.functional.pad(mass, (0, num_blocks * _BLOCK - size))
    blocks = mass.view(num_rows, num_blocks, _BLOCK)
    sums = blocks.sum(dim=-1)
    noise = exponentials(keys, num_blocks + _BLOCK, mass.device)
    block = (sums / noise[:, :num_blocks]).argmax(dim=-1)
    inside = blocks[torch.arange(num_rows, device=mass.device), block]
    token = block * _BLOCK + (inside / noise[:, num_blocks:]).argmax(dim=-1)
    return token, sums.sum(dim=-1)


def _best(raw: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the largest, lowest id first on ties, by one integer key per token."""
    if num == 0 or not len(raw):
        return raw[:0], raw[:0]
    bits = raw.view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the floats
    ids = torch.arange(raw.shape[1], device=raw.device)
    keys = ordered * 2**32 - ids
    best = keys.topk(num, dim=-1).indices
    return best, raw.gather(1, best)
