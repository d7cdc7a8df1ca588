"""A constant load on a local cluster: does anything grow, does any reply change?

python -m benchmarks.soak [--minutes 20] [--picture FILE.svg] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.soak.load import SPEC, run_load
from benchmarks.soak.report import Soak, as_markdown, panels_of
from benchmarks.soak.samples import cluster_processes, held_by
from benchmarks.timeline import write_timeline
from cluster.cli.call import Server
from cluster.spec import parse_spec
from cuvee.v1 import admin_pb2
from deployments.bench.machine import machine_line
from deployments.bench.markdown import put_fragment
from deployments.local import LocalCluster

_SAMPLE_S = 3.0
_RELEASE_S = 10.0  # by then the last cancelled replies have given everything back


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, judge, draw, print."""
    options = _parser().parse_args(arguments)
    soak = Soak(machine_line(), 60 * options.minutes)
    with LocalCluster(parse_spec(SPEC)) as cluster:
        asyncio.run(_run(soak, cluster.address))
        time.sleep(_RELEASE_S)
        _note_status(soak, cluster.address)
    if options.json:
        options.json.write_text(json.dumps(asdict(soak)))
    text = as_markdown(soak)
    print(text)
    if options.picture:
        write_timeline(options.picture, "Under a constant load", panels_of(soak))
    if options.markdown:
        put_fragment(options.markdown, "soak", text)


async def _run(soak: Soak, address: str) -> None:
    began_s = time.perf_counter()

    def clock_s() -> float:
        return time.perf_counter() - began_s

    await asyncio.gather(
        run_load(address, soak.load, clock_s, soak.seconds),
        asyncio.to_thread(_watch, soak, clock_s),
    )


def _watch(soak: Soak, clock_s: Callable[[], float]) -> None:
    """Sample every process until the time is up; a process that ends fails the run."""
    processes = cluster_processes()
    told_s = 0.0
    while (now_s := clock_s()) < soak.seconds:
        for name, pid in processes.items():
            soak.samples.setdefault(name, []).append((now_s, held_by(pid)))
        if now_s - told_s >= 60:
            told_s = now_s
            print(f"{now_s:.0f} s, {len(soak.load.ends_s)} replies", file=sys.stderr, flush=True)
        time.sleep(_SAMPLE_S)


def _note_status(soak: Soak, address: str) -> None:
    """What replicas still hold, and how often one was replaced in a reply."""
    with Server(address) as server:
        status = server.admin.GetStatus(admin_pb2.GetStatusRequest())
    replicas = [replica for member in status.members for replica in member.replicas]
    soak.num_open_leases = sum(replica.leases for replica in replicas)
    soak.num_open_sequences = sum(replica.sequences for replica in replicas)
    soak.num_takeovers = sum(blend.takeovers for blend in status.blends)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of load")
    parser.add_argument("--picture", type=Path, help="draw it as an SVG")
    parser.add_argument("--json", type=Path, help="every sample")
    parser.add_argument("--markdown", type=Path, help="a file with a place for the table")
    return parser


if __name__ == "__main__":
    main()
