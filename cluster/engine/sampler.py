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
    scaled, best = scale(logits.float(), params)
    column = on_device(targets, torch.int64, logits.device)[:, None]

    def logprobs(num_candidates: int) -> tuple[Tensor, Tensor]:
        cutoff, short = cutoffs(scaled, params, num_candidates)
        logprob = torch.log_softmax(cut(scaled, cutoff), dim=-1).gather(1, column)[:, 0]
        return logprob, torch.zeros_like(logprob) if short is None else short.float()

    logprob, short = logprobs(law.NUM_CANDIDATES)
    values, shorts, bests = torch.stack([logprob.double(), short.double(), best.double()]).tolist()
    if any(shorts):
        values = logprobs(logits.shape[1])[0].tolist()
    for row in greedy_rows(params):
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
    model = logits.float()
    raw = torch.log_softmax(model, dim=-1)
    params = [row.params for row in rows]
    possible = mask(model, [row.banned for row in rows], [row.allowed for row in rows])
    scaled, best = scale(possible, params)
    token, short = best, None
    if any(p.temperature > 0 for p in params):
        cutoff, short = cutoffs(scaled, params, num_candidates)
        drawn = _draw(cut(scaled, cutoff), [row.key for row in rows])
        greedy = on_device([p.temperature <= 0 for p in params], torch.bool, logits.device)
        token = torch.where(greedy, best, drawn)
    logprob = raw.gather(1, token[:, None])[:, 0]
    empty = ~scaled.amax(dim=-1).isfinite()
    if short is None:
        short = torch.zeros_like(empty)
    columns = (token, logprob, short, empty, _in_doubt(raw, [row.doubt for row in rows]))
    parts = [torch.stack([column.double() for column in columns])]
    wanted = [i for i, row in enumerate(rows) if row.num_top > 0]
    num_top = min(max(row.num_top for row in rows), logits.shape[1])
    if wanted:
        ids, values = _best(select(raw, wanted), num_top)
        parts += [ids.double(), values.double()]
    flat: list[float] = torch.cat([part.flatten() for part in parts]).tolist()  # the one wait

    n = len(rows)
    top_ids, top_values = 5 * n, 5 * n + len(wanted) * num_top
    place = {row: i * num_top for i, row in enumerate(wanted)}
    outputs = []
    for i, row in enumerate(rows):
        top: tuple[tuple[int, float], ...] = ()
        if i in place:
            at = range(place[i], place[i] + min(row.num_top, num_top))
            pairs = ((int(flat[top_ids + j]), flat[top_values + j]) for j in at)
            top = tuple(pair for pair in pairs if pair[1] > -math.inf)
        if flat[3 * n + i]:
            outputs.append(TokenOutput(NO_TOKEN, math.nan))
        else:
            in_doubt = bool(flat[4 * n + i])
            outputs.append(TokenOutput(int(flat[i]), flat[n + i], top, in_doubt))
    return outputs, [i for i in range(n) if flat[2 * n + i]]


def _in_doubt(raw: Tensor, doubts: Sequence[Doubt | None]) -> Tensor:
    """Which rows of log-probabilities are less sure than their threshold; none where none is."""
    found = torch.zeros(raw.shape[0], device=raw.device)
    rows = [i for i, doubt in enumerate(doubts) if doubt is not None]
    if not rows:
        return found
    chosen = select(raw, rows)
    entropy = torch.special.entr(chosen.exp()).sum(dim=-1)
    confidence = chosen.amax(dim=-1).exp()
    wanted = [doubt for doubt in doubts if doubt is not None]
    by_entropy = on_device([d.measure == "entropy" for d in wanted], torch.bool, raw.device)
    threshold = on_device([d.threshold for d in wanted], torch.float32, raw.device)
    flags = torch.where(by_entropy, entropy > threshold, confidence < threshold)
    return found.index_copy_(0, on_device(rows, torch.int64, raw.device), flags.float())


def _draw(scaled: Tensor, keys: Sequence[int]) -> Tensor:
    """The winner of each row's race, first id on ties; never one of probability zero."""
    num_rows, size = scaled.shape
    num_blocks = -(-size // _BLOCK)
    mass = torch.nn.functional.pad(scaled.exp(), (0, num_blocks * _BLOCK - size))
    blocks = mass.view(num_rows, num_blocks, _BLOCK)
    noise = exponentials(keys, num_blocks + _BLOCK, scaled.device)
    block = (blocks.sum(dim=-1) / noise[:, :num_blocks]).argmax(dim=-1)
    inside = blocks[torch.arange(num_rows, device=scaled.device), block]
    return block * _BLOCK + (inside / noise[:, num_blocks:]).argmax(dim=-1)


def _best(raw: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the largest, lowest id first on ties, by one integer key per token."""
    bits = raw.view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # integers in the order of the floats
    ids = torch.arange(raw.shape[1], device=raw.device)
    keys = ordered * 2**32 - ids
    best = keys.topk(num, dim=-1).indices
    return best, raw.gather(1, best)
