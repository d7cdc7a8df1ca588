"""The pool's processes: some with replicas, one with the router; clients are in the parent."""

from __future__ import annotations

import asyncio
import cProfile
import io
import os
import pstats
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.pool.device import Timing
from benchmarks.pool.engine import PassCounts, SimulatedEngine, TokenLaw
from cluster.engine.types import Output
from cluster.garbage import spare_what_stays
from cluster.members.base import MemberInfo
from cluster.members.exchange import ExchangeCounts
from cluster.members.granting import LeaseServer
from cluster.members.remote import Place
from cluster.members.replica import Replica
from cluster.members.server import MemberServer
from cluster.models.resolve import resolve
from cluster.router.process import running_router
from cluster.spec import parse_spec
from cluster.text.member import MemberText
from deployments.bench.children import answer_until_closed
from deployments.bench.systems import served_spec

HOST = "127.0.0.1"
PROFILE, STOP_PROFILE = "profile", "stop profile"  # questions besides the one for counts
_MAX_LEASES = 1 << 16  # simulated caches have no end
_NUM_PROFILE_LINES = 40


@dataclass(frozen=True, slots=True)
class HostCounts:
    """What a process of replicas did so far."""

    cpu_s: float
    engines: PassCounts
    num_leases: int  # held now
    num_sequences: int  # open now


@dataclass(frozen=True, slots=True)
class RouterCounts:
    """What the router did so far."""

    cpu_s: float  # all threads
    resident_bytes: int
    num_exchanges: int
    exchange: ExchangeCounts = field(default_factory=ExchangeCounts)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The replicas of one process: a member's name for each."""

    members: Sequence[str]
    model: str
    timing: Timing
    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """What the router serves, and where its replicas are."""

    spec_text: str
    places: dict[str, list[Place]]
    cores: frozenset[int]


def run_host(plan: HostPlan, pipe: Connection) -> None:
    """Serve simulated replicas from this process until the pipe closes; says its address first."""
    os.sched_setaffinity(0, plan.cores)
    asyncio.run(_host(plan, pipe))


def run_router(plan: RouterPlan, pipe: Connection) -> None:
    """Serve the public edge from this process until the pipe closes; says its address first."""
    os.sched_setaffinity(0, plan.cores)
    asyncio.run(_route(plan, pipe))


async def _host(plan: HostPlan, pipe: Connection) -> None:
    text = MemberText.load(resolve(plan.model, download=False))
    law = TokenLaw(text.token_bytes)
    engines: list[SimulatedEngine] = []
    servers: list[MemberServer] = []
    for name in plan.members:

        def start(
            report: Callable[[list[Output]], None], salt: int = int.from_bytes(name.encode())
        ) -> Any:
            engines.append(SimulatedEngine(plan.timing, law, salt, report))
            return engines[-1]

        info = MemberInfo(name, plan.model, text.vocabulary.fingerprint, 1 << 20, False)
        servers.append(MemberServer(Replica(info, text, start)))
        await servers[-1].start(HOST)
    granting = LeaseServer(servers, max_leases=_MAX_LEASES)
    await granting.start(HOST)
    spare_what_stays()
    pipe.send(granting.address)

    def counts() -> HostCounts:
        total = PassCounts()
        for engine in engines:
            total += engine.counts
        num_leases = sum(len(server.leases) for server in servers)
        num_sequences = sum(server.replica.num_sequences for server in servers)
        return HostCounts(time.process_time(), total, num_leases, num_sequences)

    await answer_until_closed(pipe, _profiled(counts))
    for server in servers:
        server.replica.stop()
    await asyncio.gather(granting.stop(), *(server.stop() for server in servers))


async def _route(plan: RouterPlan, pipe: Connection) -> None:
    spec = served_spec(parse_spec(plan.spec_text))
    async with running_router(spec, plan.places) as process:
        await process.ready()
        pipe.send(f"{HOST}:{process.edge.port}")

        def counts() -> RouterCounts:
            return RouterCounts(
                cpu_s=time.process_time(),
                resident_bytes=_resident_bytes(),
                num_exchanges=process.exchanges.num_open,
                exchange=process.exchanges.counts,
            )

        await answer_until_closed(pipe, _profiled(counts))


def _profiled(counts: Callable[[], object]) -> Callable[[str], object]:
    """Answers questions for counts, and profiles the main thread between two others."""
    profile = cProfile.Profile()

    def answer(question: str) -> object:
        if question == PROFILE:
            profile.enable()
            return None
        if question == STOP_PROFILE:
            profile.disable()
            return _top_of(profile)
        return counts()

    return answer


def _top_of(profile: cProfile.Profile) -> str:
    """The functions with most time of their own."""
    words = io.StringIO()
    pstats.Stats(profile, stream=words).sort_stats("tottime").print_stats(_NUM_PROFILE_LINES)
    return words.getvalue()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
