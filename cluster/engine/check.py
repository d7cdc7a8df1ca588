"""Trust, but verify at load: a runner must give the logits of the model's own plain forward pass.

transformers has well over a hundred causal language models. Some carry state that our attention
function never sees, and would be silently wrong. Two random sequences fed in ragged chunks, packed
with each other over scrambled pages, tell them apart in well under a second.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

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
    _judge(_run_in_chunks(runner, sequences), expected, is_single=is_single)


def check_graphs(
    runner: Runner,
    sizes: Sequence[int],
    sequences: list[list[int]],
    expected: list[Tensor],
    *,
    is_single: bool,
) -> None:
    """The same for a runner that replays passes of up to so many tokens, size by size.

    First each size feeds both sequences from their beginnings, over rows that hold the other one's,
    so that all it reads it has written. Then, whole sequences being there, each feeds stretches
    from anywhere in them once more: many in a pass, over all their pages, sizes up and down.
    """
    rng = random.Random(0)
    length = min(len(sequences[0]), runner.num_pages // 2 * runner.page_size)
    if length < 2:
        raise Unsupported("SELF_CHECK", "a pool of one page is too small to check them in")
    known = [ids[:length] for ids in sequences]
    pages = [list(range(i, num_check_pages(length, runner.page_size), 2)) for i in range(2)]

    def compare(passes: Iterable[list[Chunk]]) -> None:
        found, wanted = [], []
        for chunks in passes:
            found.append(runner.forward(chunks).clone())
            wanted += [expected[c.sequence][c.start : c.start + len(c.ids)] for c in chunks]
        _judge([torch.cat(found)], [torch.cat(wanted)], is_single=is_single)

    for size in sizes:
        pages.reverse()
        compare(_beginnings(rng, known, pages, size))
    runner.forward([Chunk(i, 0, known[i], pages[i], num_logits=0) for i in range(2)])
    for size in [*reversed(sizes), *sizes]:
        compare([_stretches(rng, known, pages, rng.randint(size // 2 + 1, size))])


def _beginnings(
    rng: random.Random, sequences: list[list[int]], pages: list[list[int]], size: int
) -> Iterator[list[Chunk]]:
    """Passes of up to `size` tokens that feed the first 24 of each sequence, or as many as that."""
    fed, num = [0, 0], min(max(24, size), len(sequences[1]))
    while min(fed) < num:
        most = rng.randint(size // 2 + 1, size)
        first = rng.randint(0, most)
        ends = [min(end + more, num) for end, more in zip(fed, (first, most - first), strict=True)]
        chunks = [
            Chunk(i, fed[i], ids[fed[i] : ends[i]], pages[i], ends[i] - fed[i])
            for i, ids in enumerate(sequences)
            if fed[i] < ends[i]
        ]
        if chunks:
            yield chunks
        fed = ends


def _stretches(
    rng: random.Random, sequences: list[list[int]], pages: list[list[int]], num_tokens: int
) -> list[Chunk]:
    """Chunks of that many tokens in all, short ones, wherever they lie in the sequences."""
    chunks = []
    while num_tokens:
        i = rng.randrange(2)
        num = min(rng.choice([1, 1, 2, 3, 16]), num_tokens, len(sequences[i]))
        start = rng.randint(0, len(sequences[i]) - num)
        chunks.append(Chunk(i, start, sequences[i][start : start + num], pages[i], num))
        num_tokens -= num
    return chunks


def _judge(found: list[Tensor], expected: list[Tensor], *, is_single: bool) -> None:
    errors = []
    for mine, theirs in zip(found, expected, strict=True):
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
            parts[chunk.sequence].append(part_logits.clone())
    for i in range(2):
        runner.drop(i)
    return [torch.cat(part) for part in parts]
