"""How well models, and blends of their predictions, predict texts: bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.gates.examples import read_examples
from cluster.models.passages import Passage, cut_passages
from cluster.rankers.base import as_text
from cluster.text.member import load_tokenizer

CONTEXT, LENGTH, MOST = 200, 400, 12  # characters, characters, passages per file


@dataclass(frozen=True, slots=True)
class Reading:
    """What one model made of some passages: each token's log-probability in nats."""

    logprobs: tuple[NDArray[np.float64], ...]  # [tokens] by passage
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        return bits(sum(float(one.sum()) for one in self.logprobs), self.num_bytes)

    @property
    def nats_per_token(self) -> float:
        return -float(np.concatenate(self.logprobs).mean())


def read_passages(files: Sequence[Path], limit: int = MOST) -> list[Passage]:
    """Of text files, stretches of them; of JSONL files, each line's reply after its prompt."""
    found: list[Passage] = []
    for file in files:
        if file.suffix == ".jsonl":
            examples = read_examples(file, ())
            found += [Passage(as_text(e.prompt), e.reply) for e in examples if e.reply]
        else:
            found += cut_passages(file, CONTEXT, LENGTH, limit)
    if not found:
        raise InvalidRequest("TEXT_TOO_SHORT", "no passages; expected some text", field="files")
    return found


class Reader:
    """Passages in one tokenizer's tokens, for any number of models that share it."""

    def __init__(self, tokenizer_folder: Path, passages: Sequence[Passage]) -> None:
        tokenizer = load_tokenizer(tokenizer_folder)
        self.num_bytes = sum(passage.num_bytes for passage in passages)
        self._ids = [
            (
                tokenizer(passage.before).input_ids,
                tokenizer(passage.text, add_special_tokens=False).input_ids,
            )
            for passage in passages
        ]

    @torch.inference_mode()
    def read(self, model: Any) -> Reading:
        """One pass per passage; the context comes before and does not count."""
        found = []
        for before, ids in self._ids:
            given = torch.tensor([[*before, *ids]], device=model.device)
            rows = model(input_ids=given, use_cache=False).logits[0, len(before) - 1 : -1]
            laws = rows.float().log_softmax(-1)
            picked = laws.gather(1, torch.tensor(ids, device=model.device)[:, None])[:, 0]
            found.append(picked.double().cpu().numpy())
        return Reading(tuple(found), self.num_bytes)


def mixed(readings: Sequence[Reading], weights: Sequence[float]) -> float:
    """Bits per byte of `mixture` by token, which is `ensemble` mean: Σ λ p at every token."""
    shares = np.log(np.array(weights) / sum(weights))[:, None]
    passages = zip(*(reading.logprobs for reading in readings), strict=True)
    nats = sum(float(np.logaddexp.reduce(np.stack(p) + shares, axis=0).sum()) for p in passages)
    return bits(nats, readings[0].num_bytes)


def adapted(readings: Sequence[Reading], weights: Sequence[float]) -> float:
    """The same with `adapt: {strength: 1, floor: 0}`: Σ λ P of each passage as a whole."""
    shares = np.log(np.array(weights) / sum(weights))
    totals = np.array([[float(p.sum()) for p in r.logprobs] for r in readings])
    nats = float(np.logaddexp.reduce(totals + shares[:, None], axis=0).sum())
    return bits(nats, readings[0].num_bytes)


def bits(nats: float, num_bytes: int) -> float:
    """Bits per byte of so many nats of log-probability; lower is better."""
    return -nats / math.log(2) / num_bytes
