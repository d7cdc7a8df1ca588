"""The pool's processes: some with replicas, one with the router; clients are in the parent."""

from __future__ import annotations

import asyncio
import cProfile
import io
import multiprocessing
import os
import pstats
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from benchmarks.pool.device import Timing
from benchmarks.pool.engine import PassCounts, SimulatedEngine, TokenLaw
from benchmarks.pool.leases import Place, PoolMember, lease_handler
from cluster.engine.types import Output
from cluster.garbage import spare_what_stays
from cluster.members.base import MemberInfo
from cluster.members.exchange import ExchangeCounts, ExchangePool
from cluster.members.replica import Replica
from cluster.members.server import MemberServer
from cluster.models.resolve import resolve
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import parse_spec
from cluster.text.member import MemberText

HOST = "127.0.0.1"
_NUM_PROFILE_LINES = 40
A = TypeVar("A")
P = TypeVar("P")


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


class Child(Generic[A]):
    """A process that said something when it was ready and answers questions until it is stopped."""

    def __init__(self, target: Callable[[P, Connection], None], plan: P) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(plan, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def address(self) -> str:
        """Where it listens, once it does; asked once."""
        return str(self._pipe.recv())

    def ask(self) -> A:
        """What it did so far."""
        self._pipe.send("counts")
        counts: A = self._pipe.recv()
        return counts

    def start_profile(self) -> None:
        """Profile its main thread from now on, which makes it slower."""
        self._pipe.send("profile")
        self._pipe.recv()

    def stop_profile(self) -> str:
        """The functions that took most time since, as a table."""
        self._pipe.send("stop profile")
        return str(self._pipe.recv())

    def stop(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


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
    granting = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    granting.add_generic_rpc_handlers((lease_handler(servers),))
    port = granting.add_insecure_port(f"{HOST}:0")
    await granting.start()
    spare_what_stays()
    pipe.send(f"{HOST}:{port}")

    def counts() -> HostCounts:
        total = PassCounts()
        for engine in engines:
            total += engine.counts
        num_leases = sum(len(server.leases) for server in servers)
        num_sequences = sum(server.replica.num_sequences for server in servers)
        return HostCounts(time.process_time(), total, num_leases, num_sequences)

    await answer_until_closed(pipe, counts)
    for server in servers:
        server.replica.stop()
    await asyncio.gather(granting.stop(None), *(server.stop() for server in servers))


async def _route(plan: RouterPlan, pipe: Connection) -> None:
    exchanges = ExchangePool()
    members = {name: PoolMember(name, at, exchanges) for name, at in plan.places.items()}
    router = Router(parse_spec(plan.spec_text), members)
    edge = Edge(router)
    await edge.start(HOST, 0)
    await router.learn_members()
    spare_what_stays()
    pipe.send(f"{HOST}:{edge.port}")

    def counts() -> RouterCounts:
        return RouterCounts(
            cpu_s=time.process_time(),
            resident_bytes=_resident_bytes(),
            num_exchanges=exchanges.num_open,
            exchange=exchanges.counts,
        )

    await answer_until_closed(pipe, counts)
    await edge.stop(0)
    await exchanges.close()
    await asyncio.gather(*(member.close() for member in members.values()))


async def answer_until_closed(pipe: Connection, counts: Callable[[], object]) -> None:
    """Answer questions as they come, until the other end closes."""
    profile = cProfile.Profile()
    closed = asyncio.Event()

    def answer() -> None:
        try:
            question = pipe.recv()
        except EOFError:
            closed.set()
            return
        if question == "profile":
            profile.enable()
            pipe.send(None)
        elif question == "stop profile":
            profile.disable()
            pipe.send(_top_of(profile))
        else:
            pipe.send(counts())

    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), answer)
    await closed.wait()
    loop.remove_reader(pipe.fileno())


def _top_of(profile: cProfile.Profile) -> str:
    """The functions with most time of their own."""
    words = io.StringIO()
    pstats.Stats(profile, stream=words).sort_stats("tottime").print_stats(_NUM_PROFILE_LINES)
    return words.getvalue()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
