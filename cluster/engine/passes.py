"""One forward pass: feed the chunks; then draw, score, or keep the rows that are to be ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import torch
from torch import Tensor

from cluster.engine.base import Runner
from cluster.engine.job import Job
from cluster.engine.sampler import SampleRow, sample, score
from cluster.engine.schedule import Plan
from cluster.engine.types import Rank, Sample, SamplingParams, Score, TokenOutput


@dataclass(slots=True)
class Found:
    """What a pass gave, by the chunk's place in the plan."""

    drawn: dict[int, TokenOutput] = field(default_factory=dict)
    scored: dict[int, list[TokenOutput]] = field(default_factory=dict)  # targets
    rows: dict[int, Tensor] = field(default_factory=dict)  # logits [V] of chunks that rank
    states: dict[int, Tensor] = field(default_factory=dict)  # what those were made from, if wanted
    failed: dict[int, Exception] = field(default_factory=dict)  # what making a row's mask raised


@torch.inference_mode()
def run_pass(runner: Runner, plan: Plan, jobs: Sequence[Job], vocab_size: int) -> Found:
    """Feed the plan's chunks; a chunk's job is at the same place in `jobs`.

    Waits for the device once for all draws, and once more only if something is scored. Logits
    from `vocab_size` on count for nothing: such an id is no token.
    """
    if plan.copies:
        runner.copy(plan.copies)
    if not plan.chunks:
        return Found()
    logits = runner.forward(plan.chunks)[:, :vocab_size]
    parts = logits.split_with_sizes([chunk.num_logits for chunk in plan.chunks])
    found = Found()
    asked = [i for i, chunk in enumerate(plan.chunks) if chunk.num_logits]
    is_over = [c.start + len(c.ids) == jobs[i].end for i, c in enumerate(plan.chunks)]
    drawing = [i for i in asked if isinstance(jobs[i].want, Sample) and is_over[i]]
    how = _sample_rows({i: jobs[i] for i in drawing}, found)
    if how:
        is_all = len(how) == logits.shape[0]
        rows = logits if is_all else torch.cat([parts[i][-1:] for i in how])
        found.drawn = dict(zip(how, sample(rows, list(how.values())), strict=True))
    targets = {i: jobs[i].targets(plan.chunks[i]) for i in asked}
    scoring = [i for i in asked if targets[i] and not isinstance(jobs[i].want, Rank)]
    if scoring:
        params = [_law_of_scores(jobs[i]) for i in scoring for _ in targets[i]]
        rows = torch.cat([parts[i][: len(targets[i])] for i in scoring])
        scored = iter(score(rows, list(chain.from_iterable(targets[i] for i in scoring)), params))
        for i in scoring:
            found.scored[i] = [next(scored) for _ in targets[i]]
    ranking = [i for i in asked if isinstance(jobs[i].want, Rank)]
    found.rows = {i: parts[i][-1].clone() for i in ranking}
    if runner.states is not None:
        ends = list(accumulate(chunk.num_logits for chunk in plan.chunks))
        wanted = [i for i in ranking if _wants_state(jobs[i])]
        found.states = {i: runner.states[ends[i] - 1].clone() for i in wanted}
    return found


def _wants_state(job: Job) -> bool:
    return isinstance(job.want, Rank) and job.want.with_state


def _sample_rows(jobs: dict[int, Job], found: Found) -> dict[int, SampleRow]:
    """How to draw for each job; one whose mask cannot be made fails alone."""
    rows = {}
    for i, job in jobs.items():
        try:
            rows[i] = job.sample_row()
        except Exception as error:
            found.failed[i] = error
    return rows


def _law_of_scores(job: Job) -> SamplingParams:
    """Under what law targets are scored; on the way to a draw, the model's own."""
    return job.want.params if isinstance(job.want, Score) else SamplingParams()
