"""Reward models of one ancestor, tuned on noisy preferences: WARM (2401.12187) in small.

A reply is better when it is Austen's and the other is Bierce's or of the King James Bible. Few
pairs, many steps and wrong labels among them: what each run learns by heart is its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cluster.models.resolve import resolve
from cluster.rankers.agreement import Pair
from tests.merging.factories import merged

PROMPT = "Say it:"
_BATCH = 8
_WORDS = 6  # of a reply
# Two layers of an embedded model: an ancestor that knows the styles and trains in seconds.
_ANCESTOR = """{merge_method: passthrough, dtype: float32, slices: [
  {sources: [{model: embedded:tiny-base, layer_range: [0, 2]}]}]}"""


def make_ancestor(folder: Path) -> Path:
    """A causal model; classifiers start from it."""
    merged(folder, _ANCESTOR)
    return folder


def make_pairs(num: int, *, seed: int, held_out: bool) -> list[Pair]:
    """Pairs from the first three quarters of the styles' texts, or from the rest."""
    chance = random.Random(seed)
    folder = resolve("embedded:tiny-base", download=False).parent / "held_out"

    def stretch(style: str) -> str:
        words = (folder / f"{style}.txt").read_text().split()
        border = len(words) * 3 // 4
        part = words[border:] if held_out else words[:border]
        begin = chance.randrange(len(part) - _WORDS)
        return " " + " ".join(part[begin : begin + _WORDS])

    return [
        Pair(PROMPT, stretch("austen"), stretch(chance.choice(("kjv", "bierce"))))
        for _ in range(num)
    ]


def flipped(pairs: Sequence[Pair], share: float, *, seed: int) -> list[Pair]:
    """With so many of the labels wrong."""
    chance = random.Random(seed)
    return [Pair(p.prompt, p.rejected, p.chosen) if chance.random() < share else p for p in pairs]


def write_pairs(file: Path, pairs: Sequence[Pair]) -> Path:
    lines = (
        json.dumps({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}) for p in pairs
    )
    file.write_text("\n".join(lines) + "\n")
    return file


def train_reward(
    folder: Path, ancestor: Path, pairs: Sequence[Pair], *, seed: int, num_steps: int
) -> Path:
    """Tune on pairs; all seeds start from the same weights, the head's being zero."""
    tokenizer = AutoTokenizer.from_pretrained(ancestor)
    tokenizer.chat_template = None
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        ancestor, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.score.weight.data.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    chance = random.Random(seed)
    for _ in range(num_steps):
        batch = chance.sample(list(pairs), _BATCH)
        texts = [p.prompt + p.chosen for p in batch] + [p.prompt + p.rejected for p in batch]
        rewards = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        loss = -logsigmoid(rewards[:_BATCH] - rewards[_BATCH:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
