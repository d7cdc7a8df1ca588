"""One router before a large simulated pool: what it carries, what it costs, who waits.

python -m benchmarks.pool [--engine l4-3b] [--streams 16 64 256] [--markdown docs/pool.md]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.pool.device import TIMINGS
from benchmarks.pool.load import jobs_of, run_phase
from benchmarks.pool.pool import ASKS, Pool, running_pool
from benchmarks.pool.processes import PROFILE, STOP_PROFILE
from benchmarks.pool.relay import floor_cpu_s
from benchmarks.pool.report import Load, Rest, Run, as_json, as_markdown
from deployments.bench.machine import machine_line
from deployments.bench.markdown import put_fragment

_REST_S = 6.0
_NUM_WARM_TOKENS = 4
_FLOOR_STREAMS, _FLOOR_MESSAGES = 64, 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _parser().parse_args(arguments)
    run = measure(options, machine_line())
    if options.json:
        options.json.write_text(as_json(run))
    print(as_markdown(run))
    if options.markdown:
        put_fragment(options.markdown, "pool", as_markdown(run))


def measure(options: argparse.Namespace, machine: str) -> Run:
    """Every blend by every number of streams, on one pool."""
    begin_s, jobs = time.monotonic(), jobs_of()
    timing = TIMINGS[options.engine]
    _say("measuring the floor")
    floor = floor_cpu_s(_FLOOR_STREAMS, _FLOOR_MESSAGES, timing.step_s)
    with running_pool(timing, options.replicas, options.hosts) as pool:
        first_rest = _rest(pool)
        _say("warming up")  # enough leases that every replica has an exchange
        warm_streams = 4 * options.replicas
        asyncio.run(run_phase(pool, ASKS["replies"], warm_streams, 1, _NUM_WARM_TOKENS, jobs))
        rest, loads = _rest(pool), []
        for blend in options.blend:
            for num_streams in options.streams:
                ask = ASKS[blend]
                _say(f"{ask.name}, {num_streams} streams")
                num_rounds = -(-options.generations // num_streams)
                short, long = (
                    asyncio.run(run_phase(pool, ask, num_streams, num_rounds, num_tokens, jobs))
                    for num_tokens in (max(2, options.tokens // 8), options.tokens)
                )
                loads.append(Load(ask.name, blend, num_streams, short, long, rest.cpu_s_per_s))
        if options.profile:
            _say("profiling")
            pool.router.ask(PROFILE)
            asyncio.run(run_phase(pool, ask, num_streams, 1, options.tokens, jobs))
            options.profile.write_text(str(pool.router.ask(STOP_PROFILE)))
    return Run(
        machine,
        timing,
        options.replicas,
        options.hosts,
        first_rest,
        rest,
        floor,
        loads,
        time.monotonic() - begin_s,
    )


def _rest(pool: Pool) -> Rest:
    """What the router spends while nobody asks."""
    before = pool.router.ask()
    time.sleep(_REST_S)
    after = pool.router.ask()
    return Rest(
        num_exchanges=after.num_exchanges,
        cpu_s_per_s=(after.cpu_s - before.cpu_s) / _REST_S,
        resident_bytes=after.resident_bytes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pool", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--engine", choices=TIMINGS, default="l4-3b", help="what a pass takes as long as")
    add("--replicas", type=int, default=64)
    add("--hosts", type=int, default=1, help="processes that replicas live in")
    add("--streams", type=int, nargs="+", default=[16, 64, 256])
    add("--tokens", type=int, default=64, help="per reply; short replies have an eighth")
    add("--generations", type=int, default=64, help="at least so many in each measurement")
    add("--blend", nargs="+", choices=ASKS, default=["replies", "spans", "tokens", "means"])
    add("--json", type=Path, metavar="FILE", help="all figures")
    add("--markdown", type=Path, metavar="FILE", help="put the tables between the file's markers")
    add("--profile", type=Path, metavar="FILE", help="profile the router in the last load, again")
    return parser


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
