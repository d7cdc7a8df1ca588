"""A load that grows and falls: how replicas follow it, and what clients see of that.

python -m benchmarks.ramp [--seconds 240] [--picture FILE.svg] [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.timeline import Panel, Points, write_timeline
from cluster.spec import parse_spec
from deployments.bench.figures import Reply, percentile
from deployments.bench.machine import machine_line
from deployments.bench.markdown import put_fragment
from deployments.bench.streams import StreamClient
from deployments.bench.workload import Ask, Job, fresh_jobs
from deployments.local import LocalCluster, application_details
from deployments.stages import MEMBER_PREFIX

SPEC = """
version: 1
members:
  often: {model: embedded:tiny-austen, MEMBER}
  rarely: {model: embedded:tiny-kjv, MEMBER}
blends:
  steep: {method: mixture, span: token, members: {often: 0.9, rarely: 0.1}}
serving: {port: 0}
""".replace(
    "MEMBER",
    "dtype: float32, kv_memory: 128MiB, max_context: 512, resources: {num_cpus: 1}, "
    "autoscaling: {max_replicas: 4, target_leases: 4, window_s: 4, "
    "upscale_delay_s: 2, downscale_delay_s: 15}",
)
# Streams at a time, and for which share of the run.
LOAD = ((1, 0.12), (6, 0.18), (18, 0.34), (4, 0.18), (1, 0.18))
NUM_TOKENS = 48
NUM_PROMPT_WORDS = 24

_SAMPLE_S = 1.0
_BIN_S = 5.0


@dataclass(slots=True)
class Ramp:
    """What was seen, in seconds since the beginning."""

    machine: str
    seconds: float
    streams: list[tuple[float, float]] = field(default_factory=list)
    replicas: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    replies: list[Reply] = field(default_factory=list)

    def replies_in(self, begin_s: float, end_s: float) -> list[Reply]:
        """Those that ended in this time."""
        return [reply for reply in self.replies if begin_s <= reply.arrivals_s[-1] < end_s]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, draw, print."""
    options = _parser().parse_args(arguments)
    ramp = Ramp(machine_line(), options.seconds)
    with LocalCluster(parse_spec(SPEC)) as cluster:
        asyncio.run(_run(ramp, cluster.address))
    table = as_markdown(ramp)
    print(table)
    if options.picture:
        write_timeline(options.picture, "Replicas follow the load", panels_of(ramp))
    if options.json:
        options.json.write_text(json.dumps(asdict(ramp)))
    if options.markdown:
        put_fragment(options.markdown, "ramp", table)


def num_streams(now_s: float, seconds: float) -> int:
    """How many there should be at this moment."""
    end_s = 0.0
    for streams, share in LOAD:
        end_s += share * seconds
        if now_s < end_s:
            return streams
    return 0


async def _run(ramp: Ramp, address: str) -> None:
    began_s = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - began_s

    async with StreamClient(address) as client:
        most = max(streams for streams, _ in LOAD)
        jobs = fresh_jobs(NUM_PROMPT_WORDS)
        streams = [_stream(number, jobs, ramp, client, clock) for number in range(most)]
        await asyncio.gather(_watch(ramp, clock), *streams)


async def _stream(
    number: int,
    jobs: Iterator[Job],
    ramp: Ramp,
    client: StreamClient,
    clock: Callable[[], float],
) -> None:
    """Reply after reply, while so many streams are wanted."""
    ask = Ask("ramp", "steep")
    for job in jobs:
        while (wanted := num_streams(clock(), ramp.seconds)) <= number:
            if not wanted:
                return
            await asyncio.sleep(0.1)
        ahead_s = time.perf_counter() - clock()
        for reply in await client.replies([job], 1, NUM_TOKENS, ask):
            arrivals_s = tuple(time_s - ahead_s for time_s in reply.arrivals_s)
            ramp.replies.append(
                Reply(reply.sent_s - ahead_s, arrivals_s, reply.num_passes, reply.num_processed)
            )


async def _watch(ramp: Ramp, clock: Callable[[], float]) -> None:
    """Note every second how many streams there should be, and replicas that run."""
    while (now_s := clock()) < ramp.seconds:
        ramp.streams.append((now_s, num_streams(now_s, ramp.seconds)))
        details: Any = await asyncio.to_thread(application_details)
        for name, deployment in details["deployments"].items():
            if name.startswith(MEMBER_PREFIX):
                states = [replica["state"].value for replica in deployment["replicas"]]
                line = ramp.replicas.setdefault(name.removeprefix(MEMBER_PREFIX), [])
                line.append((now_s, states.count("RUNNING")))
        await asyncio.sleep(_SAMPLE_S)


def panels_of(ramp: Ramp) -> list[Panel]:
    """What the picture shows."""

    def binned(measure: Callable[[list[Reply]], float]) -> Points:
        begins = [number * _BIN_S for number in range(int(ramp.seconds / _BIN_S))]
        found = [(begin, ramp.replies_in(begin, begin + _BIN_S)) for begin in begins]
        return [(begin + _BIN_S / 2, measure(replies)) for begin, replies in found if replies]

    return [
        Panel("streams", {"": ramp.streams}, is_stepped=True),
        Panel("replicas", dict(ramp.replicas), is_stepped=True),
        Panel("tokens per second", {"": binned(lambda r: _num_tokens(r) / _BIN_S)}),
        Panel(
            "to the first token, ms",
            {"median": binned(lambda r: median(_firsts_ms(r))), "p95": binned(_first_p95_ms)},
        ),
        Panel("between tokens, ms", {"median": binned(_gap_ms)}),
    ]


def as_markdown(ramp: Ramp) -> str:
    """One row for each level of load; its replicas are those at its end."""
    lines = [
        f"{ramp.machine}. {ramp.seconds:g} s in all.",
        "",
        "| streams | for, s | replicas at its end | tokens/s | first token, ms (p95) "
        "| between tokens, ms |",
        "|---|---|---|---|---|---|",
    ]
    begin_s = 0.0
    for streams, share in LOAD:
        end_s = begin_s + share * ramp.seconds
        replies = ramp.replies_in(begin_s, end_s)
        replicas = ", ".join(
            f"{name} {max((p for p in line if p[0] < end_s), default=(0, 0))[1]:g}"
            for name, line in ramp.replicas.items()
        )
        lines.append(
            f"| {streams} | {end_s - begin_s:.0f} | {replicas} "
            f"| {_num_tokens(replies) / (end_s - begin_s):.0f} "
            f"| {median(_firsts_ms(replies)):.0f} ({_first_p95_ms(replies):.0f}) "
            f"| {_gap_ms(replies):.1f} |"
        )
        begin_s = end_s
    return "\n".join(lines)


def _num_tokens(replies: Sequence[Reply]) -> int:
    return sum(len(reply.arrivals_s) for reply in replies)


def _firsts_ms(replies: Sequence[Reply]) -> list[float]:
    return [1000 * (reply.arrivals_s[0] - reply.sent_s) for reply in replies]


def _first_p95_ms(replies: Sequence[Reply]) -> float:
    return percentile(_firsts_ms(replies), 0.95)


def _gap_ms(replies: Sequence[Reply]) -> float:
    """A reply's mean gap, the median over replies."""
    return median(
        1000 * (reply.arrivals_s[-1] - reply.arrivals_s[0]) / (len(reply.arrivals_s) - 1)
        for reply in replies
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0, help="of the whole run")
    parser.add_argument("--picture", type=Path, help="draw it as an SVG")
    parser.add_argument("--json", type=Path, help="every reply and sample")
    parser.add_argument("--markdown", type=Path, help="a file with a place for the table")
    return parser


if __name__ == "__main__":
    main()
