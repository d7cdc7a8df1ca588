"""From logits to tokens: one law, one pass over a batch of unlike rows, one wait for the device.

The law: temperature, then top-k, then top-p, then min-p, each on the distribution left by the one
before, renormalised at the end. Temperature 0 is the argmax, lowest id on ties. No truncation
separates equals: tokens tied with the last one kept by top-k or top-p are kept too, so the set
never depends on how a sort orders them (in bfloat16, ties are everyday). Top-p keeps the token that
crosses the threshold; min-p keeps what has at least min_p times the largest probability.

The draw is an exponential race: of all p / E, E unit exponentials, the largest wins: a draw
from p, exactly (the Gumbel-max trick); first among blocks of ids, then within the winning one, so
that few E are needed. Logits that differ by rounding, as they do between batch shapes, then change
a draw about as rarely as they differ little; inverting the distribution function would add up the
differences of all ids before, and change it hundreds of times as often.

Every truncation is a cut-off on the scaled logits, found among the largest candidates; the
vocabulary is never sorted, save for a row whose candidates hold too little mass, which is done
again after the one wait.

A row's result depends on that row alone. This module knows neither seeds nor sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.engine.noise import exponentials
from cluster.engine.types import Doubt, SamplingParams, TokenOutput

NO_TOKEN = -1  # drawn from a row that has nothing to draw: NaN or +inf logits, or all of it -inf
NUM_CANDIDATES = 1024  # how many of the largest logits top-p looks at before it sorts them all

_BLOCK = 128  # ids; part of what makes draws repeatable
_COLDEST = 1e-20  # what divides by less would not be a float32


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


def log_warp(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Log-probabilities [B, V] in id order under each row's law; NaN where none is finite."""
    scaled, best = _scale(logits.float(), params)
    cutoff, short = _cutoffs(scaled, params, NUM_CANDIDATES)
    if short is not None and bool(short.any()):
        cutoff, _ = _cutoffs(scaled, params, scaled.shape[1])
    logprobs = torch.log_softmax(_cut(scaled, cutoff), dim=-1)
    if greedy := _greedy_rows(params):
        index = _on_device(greedy, torch.int64, logits.device)
        one_hot = torch.nn.functional.one_hot(best[index], logits.shape[1])
        failed = logprobs[index].isnan().any(dim=-1, keepdim=True)
        logprobs.index_copy_(0, index, one_hot.float().log().masked_fill(failed, math.nan))
    return logprobs


def warp(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [B, V] in id order under each row's law; NaN where no logit is finite."""
    return log_warp(logits, params).exp()


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> list[TokenOutput]:
    """Draw one token per row; log-probabilities are the model's, before masks and warping.

    `top` lists the model's best candidates, lowest id first on ties, none of probability zero.
    A row with nothing to draw gives NO_TOKEN and NaN, so that one bad row spoils no other.
    """
    outputs, short = _sample(logits, rows, NUM_CANDIDATES)
    if short:
        again = logits.index_select(0, _on_device(short, torch.int64, logits.device))
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
    scaled, best = _scale(logits.float(), params)
    column = _on_device(targets, torch.int64, logits.device)[:, None]

    def logprobs(num_candidates: int) -> tuple[Tensor, Tensor]:
        cutoff, short = _cutoffs(scaled, params, num_candidates)
        logprob = torch.log_softmax(_cut(scaled, cutoff), dim=-1).gather(1, column)[:, 0]
        return logprob, torch.zeros_like(logprob) if short is None else short.float()

    logprob, short = logprobs(NUM_CANDIDATES)
    values, shorts, bests = torch.stack([logprob.double(), short.double(), best.double()]).tolist()
    if any(shorts):
        values = logprobs(logits.shape[1])[0].tolist()
    for row in _greedy_rows(params):
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
    scaled, best = _scale(possible, params)
    token, short = best, None
    if any(p.temperature > 0 for p in params):
        cutoff, short = _cutoffs(scaled, params, num_candidates)
        drawn = _draw(_cut(scaled, cutoff), rows)
        greedy = _on_device([p.temperature <= 0 for p in params], torch.bool, logits.device)
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
        ids, values = _best(_select(raw, wanted), num_top)
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
    chosen = _select(raw, rows)
    entropy = torch.special.entr(chosen.exp()).sum(dim=-1)
    confidence = chosen.amax(dim=-1).exp()
    wanted = [doubt for doubt in doubts if doubt is not None]
    by_entropy = _on_device([d.measure == "entropy" for d in wanted], torch.bool, raw.device)
    threshold = _on_device([d.threshold for d in wanted], torch.float32, raw.device)
    flags = torch.where(by_entropy, entropy > threshold, confidence < threshold)
    return found.index_copy_(0, _on_device(rows, torch.int64, raw.device), flags.float())


def _scale(logits: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """(logits - max) / temperature, so that the best is 0 at any temperature; and the argmax."""
    largest, best = logits.max(dim=-1)  # the first of equals
    scaled = logits - largest[:, None]
    if any(p.temperature not in (0.0, 1.0) for p in params):
        divisors = [max(p.temperature, _COLDEST) if p.temperature > 0 else 1.0 for p in params]
        scaled.div_(_on_device(divisors, torch.float32, logits.device)[:, None])
    return scaled, best


def _cutoffs(
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
    cutoff = _on_device(floors, torch.float32, device)
    if not rows:
        return cutoff, None
    width = min(max(top_k[i] or num_candidates for i in rows), size)
    chosen = _select(scaled, rows)
    candidates = chosen.topk(width, dim=-1).values
    ks = _on_device([top_k[i] for i in rows], torch.int64, device)[:, None]
    kth = candidates.gather(1, (ks - 1).clamp(min=0))
    found = torch.where(ks > 0, kth, -math.inf)
    short = None
    if any(top_p[i] < 1 for i in rows):
        ps = _on_device([top_p[i] for i in rows], torch.float64, device)[:, None]
        left = _cut(chosen, found[:, 0]).exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
        mass = candidates.exp().cumsum(dim=-1, dtype=torch.float64)
        crossing = (mass < ps * left).sum(dim=-1, keepdim=True)
        last = candidates.gather(1, crossing.clamp(max=width - 1))
        found = torch.where(crossing < width, torch.maximum(found, last), found)
        if width < size and any(top_p[i] < 1 and not top_k[i] for i in rows):
            missing = ((crossing == width) & (ks == 0) & (ps < 1))[:, 0]
            index = _on_device(rows, torch.int64, device)
            short = torch.zeros(len(params), dtype=torch.bool, device=device)
            short.index_copy_(0, index, missing)
    index = _on_device(rows, torch.int64, device)
    cutoff.index_copy_(0, index, torch.maximum(cutoff.index_select(0, index), found[:, 0]))
    return cutoff, short


def _cut(scaled: Tensor, cutoff: Tensor | None) -> Tensor:
    return scaled if cutoff is None else scaled.masked_fill(scaled < cutoff[:, None], -math.inf)


def _draw(scaled: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The winner of each row's race, first id on ties; never one of probability zero."""
    keys = [row.key for row in rows]
    if not any(row.by_id for row in rows):
        return _draw_by_blocks(scaled, keys)
    by_id = (scaled.exp() / exponentials(keys, scaled.shape[1], scaled.device)).argmax(dim=-1)
    if all(row.by_id for row in rows):
        return by_id
    chosen = _on_device([row.by_id for row in rows], torch.bool, scaled.device)
    return torch.where(chosen, by_id, _draw_by_blocks(scaled, keys))


def _draw_by_blocks(scaled: Tensor, keys: Sequence[int]) -> Tensor:
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


def mask(
    logits: Tensor, banned: Sequence[tuple[int, ...]], allowed: Sequence[bytes | None]
) -> Tensor:
    """Each row without its banned ids, and of a row with `allowed` those ids alone."""
    pairs = [(i, token) for i, tokens in enumerate(banned) for token in tokens]
    if pairs:
        where = _on_device(pairs, torch.int64, logits.device)
        barred = logits.new_full((), -math.inf)
        logits = logits.index_put((where[:, 0], where[:, 1]), barred)
    masks = [bits for bits in allowed if bits is not None]
    if masks:
        chosen = [i for i, bits in enumerate(allowed) if bits is not None]
        kept = _unpacked(masks, logits.shape[1], logits.device)
        masked = _select(logits, chosen).masked_fill(~kept, -math.inf)
        index = _on_device(chosen, torch.int64, logits.device)
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


def _greedy_rows(params: Sequence[SamplingParams]) -> list[int]:
    return [i for i, p in enumerate(params) if p.temperature <= 0]


def _select(rows: Tensor, chosen: list[int]) -> Tensor:
    if len(chosen) == rows.shape[0]:
        return rows
    return rows.index_select(0, _on_device(chosen, torch.int64, rows.device))


def _on_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small host list as a tensor there; from pinned memory, so that nothing waits for it."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
