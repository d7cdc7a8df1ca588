"""Trust, but verify at load: a runner must give the logits of the model's own plain forward pass.

transformers has well over a hundred causal language models. Some carry state that our attention
function never sees, and would be silently wrong. Two random sequences fed in ragged chunks, packed
with each other over scrambled pages, tell them apart in well under a second.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cluster.engine.base import Chunk, Runner
from cluster.errors import Unsupported

_ENDS = (  # where each sequence's chunks end, in parts of its length
    (0.30, 0.325, 0.775, 0.80, 1.0),
    (0.05, 0.45, 0.475, 0.50, 1.0),
)
_MAX_ERROR_SINGLE = 1e-3  # float32: the worst position's relative error
_MAX_ERROR_HALF = 0.05  # half precision: the median position's


def make_sequences(vocab_size: int, length: int) -> list[list[int]]:
    """Two random sequences, always the same."""
    rng = random.Random(0)
    return [[rng.randrange(vocab_size) for _ in range(max(2, length - cut))] for cut in (0, 3)]


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, sequences: list[list[int]]) -> list[Tensor]:
    """Logits [length, vocab_size] of each sequence, from the model alone, without a cache."""
    device = model.device
    inputs = [torch.tensor([ids], device=device) for ids in sequences]
    return [model(input_ids=ids, use_cache=False).logits[0] for ids in inputs]


def check_runner(
    runner: Runner, sequences: list[list[int]], expected: list[Tensor], *, is_single: bool
) -> None:
    """Raise `Unsupported` unless the runner gives the expected logits.

    Judged by relative error per position: where all is float32 by the worst; in half precision,
    where rounding may flip an expert's choice here and there, by the median.
    """
    errors = []
    for mine, theirs in zip(_run_in_chunks(runner, sequences), expected, strict=True):
        reference = theirs.float()
        spread = (reference - reference.mean(dim=-1, keepdim=True)).norm(dim=-1)
        errors.append((mine.float() - reference).norm(dim=-1) / spread.clamp(min=1e-6))
    together = torch.cat(errors).nan_to_num(nan=float("inf"))
    error = float(together.max() if is_single else together.median())
    if not error <= (_MAX_ERROR_SINGLE if is_single else _MAX_ERROR_HALF):
        raise Unsupported("SELF_CHECK", f"its logits are off by {error:.1e} of their spread")


def num_check_pages(length: int, page_size: int) -> int:
    """How many pages `check_runner` uses."""
    return 2 * -(-length // page_size)


def _run_in_chunks(runner: Runner, sequences: list[list[int]]) -> list[Tensor]:
    """Feed both sequences step by step, a chunk of each per pass, over interleaved pages."""
    num_pages = num_check_pages(len(sequences[0]), runner.page_size)
    pages = [list(range(num_pages - 1 - i, -1, -2)) for i in range(2)]
    ends = [[round(share * len(ids)) for share in _ENDS[i]] for i, ids in enumerate(sequences)]
    parts: list[list[Tensor]] = [[], []]
    for step in range(len(_ENDS[0])):
        chunks = []
        for i, ids in enumerate(sequences):
            start = ends[i][step - 1] if step else 0
            part = ids[start : ends[i][step]]
            if part:
                chunks.append(Chunk(i, start, part, pages[i], num_logits=len(part)))
        if not chunks:
            continue
        logits = runner.forward(chunks).split_with_sizes([chunk.num_logits for chunk in chunks])
        for chunk, part_logits in zip(chunks, logits, strict=True):
            parts[chunk.sequence].append(part_logits)
    for i in range(2):
        runner.drop(i)
    return [torch.cat(part) for part in parts]
