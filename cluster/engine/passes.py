"""One forward pass: feed the chunks; then draw, score, or keep the rows that are to be ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from cluster.engine.base import Runner
from cluster.engine.job import Job
from cluster.engine.sampler import sample, score
from cluster.engine.schedule import Plan
from cluster.engine.types import Rank, Sample, Score, TokenOutput


@dataclass(slots=True)
class Found:
    """What a pass gave, by chunk."""

    tokens: list[list[TokenOutput]]  # the token drawn, or the targets' scores
    rows: dict[int, Tensor] = field(default_factory=dict)  # logits [V] of chunks that rank


@torch.inference_mode()
def run_pass(runner: Runner, plan: Plan, jobs: Sequence[Job], vocab_size: int) -> Found:
    """Feed the plan's chunks; a chunk's job is at the same place in `jobs`.

    Waits for the device once for all draws, and once more only if something is scored. Logits
    from `vocab_size` on count for nothing: such an id is no token.
    """
    if plan.copies:
        runner.copy(plan.copies)
    if not plan.chunks:
        return Found([])
    logits = runner.forward(plan.chunks)[:, :vocab_size]
    parts = logits.split_with_sizes([chunk.num_logits for chunk in plan.chunks])
    tokens: list[list[TokenOutput]] = [[] for _ in jobs]
    asked = [i for i, chunk in enumerate(plan.chunks) if chunk.num_logits]
    drawing = [i for i in asked if isinstance(jobs[i].want, Sample)]
    if drawing:
        is_all = len(drawing) == logits.shape[0]
        rows = logits if is_all else torch.cat([parts[i] for i in drawing])
        drawn = sample(rows, [jobs[i].sample_row() for i in drawing])
        for i, token in zip(drawing, drawn, strict=True):
            tokens[i] = [token]
    scoring = [(i, want) for i in asked if isinstance(want := jobs[i].want, Score)]
    if scoring:
        targets = [jobs[i].targets(plan.chunks[i]) for i, _ in scoring]
        params = [want.params for (_, want), ids in zip(scoring, targets, strict=True) for _ in ids]
        rows = torch.cat([parts[i] for i, _ in scoring])
        scored = iter(score(rows, list(chain.from_iterable(targets)), params))
        for (i, _), ids in zip(scoring, targets, strict=True):
            tokens[i] = [next(scored) for _ in ids]
    ranking = [i for i in asked if isinstance(jobs[i].want, Rank)]
    return Found(tokens, {i: parts[i][-1].clone() for i in ranking})
