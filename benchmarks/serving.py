"""Cuvée through Ray Serve and gRPC beside plain transformers, in one run, in interleaved rounds.

python -m benchmarks.serving [--model tiny smollm2] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks.cases import Case, cases_of
from benchmarks.counts import count_messages
from benchmarks.figures import CpuSeconds, Figures, figures_of
from benchmarks.machine import machine_line
from benchmarks.markdown import put_fragment
from benchmarks.processes import ReplicaProcesses
from benchmarks.report import Result, Run, as_json, as_markdown
from benchmarks.rivals import PlainModel
from benchmarks.streams import StreamClient
from benchmarks.workload import WORKLOADS, Job, Workload, fresh_jobs
from cluster.errors import CuveeError
from cluster.models.resolve import resolve
from deployments.local import LocalCluster

_IDLE_S = 8.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _parser().parse_args(arguments)
    workloads = [_sized(WORKLOADS[name], options) for name in options.model]
    try:
        for model in {model for workload in workloads for model in workload.models}:
            resolve(model, download=False)
    except CuveeError as error:
        raise SystemExit(error.message) from None
    machine, runs = machine_line(), []
    for workload in workloads:
        runs.append(run := measure(workload, machine))
        print(as_markdown(run), end="\n\n", flush=True)
        if options.markdown:
            put_fragment(options.markdown, run.workload.name, as_markdown(run))
        if options.json:
            options.json.write_text(as_json(runs))


def measure(workload: Workload, machine: str) -> Run:
    """One workload: the wire's counts first, then a cluster beside the rivals."""
    begin_s = time.monotonic()
    jobs = fresh_jobs(workload.num_prompt_words)
    _say(workload, "counting messages")
    wire = asyncio.run(count_messages(workload, jobs))
    _say(workload, "loading the rivals' models")
    folders = [resolve(model, download=False) for model in workload.models]
    plains = [PlainModel(folder, workload.dtype) for folder in folders]
    _say(workload, "starting the cluster")
    with LocalCluster(workload.spec) as cluster:
        meter = Meter(ReplicaProcesses.of_this_cluster())

        async def rounds() -> list[Result]:
            async with StreamClient(cluster.address) as client:
                return await _rounds(workload, cases_of(workload, plains, client), meter, jobs)

        results = asyncio.run(rounds())
    return Run(workload, machine, results, wire, meter.idle, time.monotonic() - begin_s)


class Meter:
    """Measures one case at a time, the processors of all processes with it."""

    def __init__(self, processes: ReplicaProcesses) -> None:
        self.idle = CpuSeconds(0.0)  # per second
        self._processes = processes

    async def learn_idle(self) -> None:
        """What a cluster uses when nobody asks: Serve's metrics, health checks, pings."""
        before = self._processes.cpu()
        await asyncio.sleep(_IDLE_S)
        self.idle = (self._processes.cpu() - before).scaled(1 / _IDLE_S)

    async def figures(self, case: Case, jobs: Sequence[Job]) -> Figures:
        """Let the case do the jobs."""
        before, begin_s = self._processes.cpu(), time.perf_counter()
        replies = await case.replies(jobs)
        wall_s = time.perf_counter() - begin_s
        cpu = self._processes.cpu() - before - self.idle.scaled(wall_s)
        if not case.is_served:
            cpu = CpuSeconds(models=cpu.client)
        return figures_of(replies, wall_s, cpu)


async def _rounds(
    workload: Workload, cases: Sequence[Case], meter: Meter, jobs: Iterator[Job]
) -> list[Result]:
    """Every case once to warm up, then every case in every round."""
    results = [Result(case.name, case.rivals, case.is_served) for case in cases]
    for number in range(workload.num_rounds + 1):
        _say(workload, f"round {number} of {workload.num_rounds}" if number else "warming up")
        for case, result in zip(cases, results, strict=True):
            figures = await meter.figures(case, list(islice(jobs, case.num_jobs)))
            if number:
                result.rounds.append(figures)
        if not number:
            await meter.learn_idle()
    return results


def _sized(workload: Workload, options: argparse.Namespace) -> Workload:
    given = {
        "num_rounds": options.rounds,
        "num_new_tokens": options.tokens,
        "num_streams": options.streams,
        "num_threads": options.threads,
        "dtype": options.dtype,
    }
    return replace(workload, **{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--model", nargs="+", choices=WORKLOADS, default=["tiny"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tokens", type=int, help="new tokens per reply")
    parser.add_argument("--streams", type=int, help="concurrent streams where there are many")
    parser.add_argument("--threads", type=int, help="torch threads per replica and in the rivals")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures of all rounds")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="put the tables between the file's markers"
    )
    return parser


def _say(workload: Workload, words: str) -> None:
    print(f"{workload.name}: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
