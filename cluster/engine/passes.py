"""One forward pass: feed the chunks; then draw, score, or keep the rows that are to be ranked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cluster.engine.base import Runner
from cluster.engine.job import Job
from cluster.engine.sampler import SampleRow, sample, score
from cluster.engine.schedule import Plan
from cluster.engine.types import Rank, SamplingParams, Score, TokenOutput

_OWN = SamplingParams()  # the model's own law


@dataclass(slots=True)
class Found:
    """What a pass gave, by the chunk's place in the plan."""

    drawn: dict[int, list[tuple[int, TokenOutput]]] = field(default_factory=dict)  # by offset
    scored: dict[int, list[TokenOutput]] = field(default_factory=dict)  # by the model's own law
    targets: dict[int, list[TokenOutput]] = field(default_factory=dict)  # by a Score's
    rows: dict[int, Tensor] = field(default_factory=dict)  # logits [n, V] of chunks that rank
    states: dict[int, Tensor] = field(default_factory=dict)  # [n, d] behind those, if wanted
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
    how = _sample_rows({i: jobs[i] for i in asked}, plan, found)
    if how:
        is_all = len(how) == logits.shape[0]
        rows = logits if is_all else torch.cat([parts[i][row : row + 1] for i, row, _, _ in how])
        tokens = sample(rows, [sample_row for *_, sample_row in how])
        for (i, _, at, _), token in zip(how, tokens, strict=True):
            found.drawn.setdefault(i, []).append((at, token))
    _score({i: parts[i] for i in asked}, plan, jobs, found)
    for i in asked:
        num_after = len(jobs[i].ids) - plan.chunks[i].start - len(plan.chunks[i].ids)
        if (num_rows := jobs[i].num_ranked - num_after) > 0:
            found.rows[i] = parts[i][-num_rows:].clone()
            if _wants_state(jobs[i]) and runner.states is not None:
                end = sum(chunk.num_logits for chunk in plan.chunks[: i + 1])
                begin = end - len(found.rows[i])  # fewer, where a chunk before told of some
                found.states[i] = runner.states[begin:end].clone()
    return found


def _wants_state(job: Job) -> bool:
    return isinstance(job.want, Rank) and job.want.with_state


def _sample_rows(
    jobs: dict[int, Job], plan: Plan, found: Found
) -> list[tuple[int, int, int, SampleRow]]:
    """By chunk, row in its logits and offset in the run: how to draw there.

    A job whose mask cannot be made fails alone.
    """
    rows = []
    for i, job in jobs.items():
        try:
            of_job = [(i, row, at, job.sample_row(at)) for row, at in job.draws_in(plan.chunks[i])]
        except Exception as error:
            found.failed[i] = error
        else:
            rows += of_job
    return rows


@torch.inference_mode()
def draw_from(row: Tensor, job: Job) -> TokenOutput:
    """The next token of a job whose logits [V] an earlier pass gave."""
    return sample(row[None], [job.sample_row(job.num_drawn)])[0]


def _score(parts: Mapping[int, Tensor], plan: Plan, jobs: Sequence[Job], found: Found) -> None:
    """What is scored: the last ids under the model's own law, a Score's targets under its own."""
    rows: list[Tensor] = []
    targets: list[int] = []
    laws: list[SamplingParams] = []
    into: list[list[TokenOutput]] = []
    for i, part in parts.items():
        want, chunk = jobs[i].want, plan.chunks[i]
        law = want.params if isinstance(want, Score) else _OWN
        for num_last, law_of_part, of_chunk in (
            (jobs[i].num_scored, _OWN, found.scored),
            (jobs[i].num_targets, law, found.targets),
        ):
            first, ids = jobs[i].scored_by(chunk, num_last) if num_last else (0, [])
            if ids:
                rows.append(part[first : first + len(ids)])
                targets += ids
                laws += [law_of_part] * len(ids)
                into += [of_chunk.setdefault(i, [])] * len(ids)
    if rows:
        for token, tokens in zip(score(torch.cat(rows), targets, laws), into, strict=True):
            tokens.append(token)
