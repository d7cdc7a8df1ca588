"""How well a model predicts text it never saw: bits per character and per byte.

Counted over whole texts, paragraph ends included (each end is one byte of the denominator), so
models with different tokenizers can be compared. `python -m cluster.models.held_out` prints the
model card's table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from cluster.models.corpus import STYLES, read_paragraphs

EMBEDDED = Path(__file__).parent / "embedded"
NAMES = ("tiny-base", "tiny-austen", "tiny-kjv", "tiny-bierce", "tiny-bytes")
_CONTEXT = 1024


@dataclass(frozen=True)
class Bits:
    """Total surprise, divided two ways; lower is better."""

    per_char: float
    per_byte: float


def encode(tokenizer: Any, paragraphs: list[str] | tuple[str, ...]) -> list[int]:
    """The training stream's form: every paragraph followed by the end-of-turn token."""
    ids: list[int] = []
    for paragraph in paragraphs:
        ids += tokenizer.encode(paragraph, add_special_tokens=False, verbose=False)
        ids.append(tokenizer.eos_token_id)
    return ids


@torch.inference_mode()
def surprise(model: Any, ids: list[int], end_id: int, stride: int = _CONTEXT // 2) -> float:
    """Nats over `ids`, read in windows of the full context of which the last `stride` count."""
    stream = torch.tensor([end_id, *ids], device=model.device)
    nats = 0.0
    for start in range(0, len(ids), stride):
        first = max(0, start + stride - _CONTEXT)
        window = stream[first : start + stride + 1]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0, start - first :]
        targets = window[1 + start - first :]
        nats += float(cross_entropy(logits.float(), targets, reduction="sum"))
    return nats


def bits(model: Any, tokenizer: Any, paragraphs: list[str] | tuple[str, ...]) -> Bits:
    """A model's bits on the paragraphs, read as one text."""
    nats = surprise(model, encode(tokenizer, paragraphs), tokenizer.eos_token_id)
    num_chars = sum(len(paragraph) + 1 for paragraph in paragraphs)
    num_bytes = sum(len(paragraph.encode()) + 1 for paragraph in paragraphs)
    total = nats / math.log(2)
    return Bits(per_char=total / num_chars, per_byte=total / num_bytes)


def main() -> None:
    """Print bits per character / per byte of every embedded model on every style."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"| model | {' | '.join(STYLES)} |")
    print("| --- " * (1 + len(STYLES)) + "|")
    for name in NAMES:
        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / name)
        model = AutoModelForCausalLM.from_pretrained(EMBEDDED / name, dtype=torch.float32)
        row = []
        for style in STYLES:
            found = bits(model, tokenizer, read_paragraphs(EMBEDDED / "held_out" / f"{style}.txt"))
            row.append(f"{found.per_char:.3f} / {found.per_byte:.3f}")
        print(f"| `{name}` | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
