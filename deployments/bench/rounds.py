"""A run: every case once to warm up, then every case in every round."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cluster.members.exchange import ExchangeCounts
from deployments.bench.cases import Case, Key
from deployments.bench.figures import CpuSeconds, Figures, figures_of
from deployments.bench.settings import Settings
from deployments.bench.systems import System, idle_cpu
from deployments.bench.workload import Job

_IDLE_S = 4.0


@dataclass(slots=True)
class Result:
    """One case over all rounds."""

    key: Key
    is_served: bool
    rounds: list[Figures] = field(default_factory=list)

    def values(self, name: str) -> list[float]:
        """One figure, by round."""
        return [float(getattr(figures, name)) for figures in self.rounds]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the rounds gave."""

    results: Sequence[Result]
    idle: CpuSeconds  # per second
    took_s: float
    load_after: float  # runnable threads, averaged over the last minute; ours among them


def measure(
    cases: Sequence[Case],
    system: System,
    settings: Settings,
    jobs: Iterator[Job],
    say: Callable[[str], None],
) -> Measured:
    """Interleaved, cases of as much load side by side, and every other round from the last to
    the first: what the machine does meanwhile meets alike what is compared.
    """
    begin_s = time.monotonic()
    results = [Result(case.key, case.is_served) for case in cases]
    idle, pairs = CpuSeconds(), list(zip(cases, results, strict=True))
    pairs.sort(key=lambda pair: pair[0].key.amount)
    for number in range(settings.num_rounds + 1):
        words = f"round {number} of {settings.num_rounds}" if number else "warming up"
        for case, result in pairs:
            say(f"{words}: {case.key}")
            figures = _run(case, list(islice(jobs, case.num_jobs)), number, system, settings, idle)
            if number:
                result.rounds.append(figures)
        pairs.reverse()
        if not number:
            say("at rest")
            idle = idle_cpu(system, _IDLE_S)
    return Measured(results, idle, time.monotonic() - begin_s, round(os.getloadavg()[0], 1))


def _run(
    case: Case,
    jobs: Sequence[Job],
    number: int,
    system: System,
    settings: Settings,
    idle: CpuSeconds,
) -> Figures:
    if len(jobs) < case.num_jobs:
        raise ValueError("the prompts are used up; expected fewer rounds, streams or replies")
    before, begin_s = system.spent(), time.perf_counter()
    loaded = case.run(jobs, number)
    after, lasted_s = system.spent(), time.perf_counter() - begin_s
    if not case.is_served:
        return figures_of(loaded.replies, loaded.wall_s, CpuSeconds(models=loaded.cpu_s))
    used = after.cpu - before.cpu - idle.scaled(lasted_s)
    cpu = CpuSeconds(max(0.0, used.models), max(0.0, used.router), loaded.cpu_s)
    exchange = difference(before.exchange, after.exchange)
    return figures_of(loaded.replies, loaded.wall_s, cpu, exchange, settings.limits)


def difference(
    before: ExchangeCounts | None, after: ExchangeCounts | None
) -> ExchangeCounts | None:
    """What came to exact totals, where they are known."""
    if before is None or after is None:
        return None
    names = ExchangeCounts.__slots__
    return ExchangeCounts(**{name: getattr(after, name) - getattr(before, name) for name in names})
