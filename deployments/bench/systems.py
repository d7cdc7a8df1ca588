"""What is loaded: Cuvée on Ray, Cuvée as plain processes, or a cluster that runs elsewhere."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from cluster.access.hosts import address_of
from cluster.errors import Unavailable
from cluster.members.exchange import ExchangeCounts
from cluster.members.remote import Place
from cluster.router.process import running_router
from cluster.spec import ClusterSpec
from deployments.bench.children import Child, answer_until_closed, cpu_seconds
from deployments.bench.figures import CpuSeconds
from deployments.local import LocalCluster

_HOST = "127.0.0.1"
_CUVEE = (sys.executable, "-c", "from cluster.cli.main import app; app(prog_name='cuvee')")
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class Spent:
    """So far, by all processes of a system."""

    cpu: CpuSeconds = field(default_factory=CpuSeconds)
    exchange: ExchangeCounts | None = None  # None: not known


class System(Protocol):
    """Cuvée, running."""

    @property
    def address(self) -> str:
        """Of the public edge."""

    @property
    def way(self) -> str:
        """How it runs, for tables."""

    @property
    def ray_address(self) -> str:
        """Of the Ray that it runs on; empty without one."""

    def spent(self) -> Spent:
        """What it has used until now."""


@dataclass(frozen=True, slots=True)
class FarSystem:
    """A cluster at an address, of which a client sees no more than its replies."""

    address: str
    way: str = "elsewhere"
    ray_address: str = ""

    def spent(self) -> Spent:
        """Nobody tells."""
        return Spent()


def served_spec(spec: ClusterSpec) -> ClusterSpec:
    """The spec as a benchmark serves it: on a free port of loopback, for itself alone."""
    open_to_us = {"host": _HOST, "port": 0, "auth": None, "tls": None, "metrics": None}
    serving = spec.serving.model_copy(update={**open_to_us, "drain_s": 0.0})
    return spec.model_copy(update={"serving": serving})


# -- on Ray ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RaySystem:
    """A cluster on this machine's Ray, started for the run."""

    cluster: LocalCluster
    way: str = "on Ray"

    @property
    def address(self) -> str:
        """Of the public edge."""
        return self.cluster.address

    @property
    def ray_address(self) -> str:
        """Of its Ray."""
        return self.cluster.ray_address

    def spent(self) -> Spent:
        """By the replicas' processes; the router tells the counts of its exchanges."""
        from ray import serve

        from deployments.local import application_details
        from deployments.stages import APPLICATION, ROUTER

        details = application_details()["deployments"]
        pids = {n: [r["pid"] for r in d["replicas"]] for n, d in details.items()}
        routers = pids.pop(ROUTER)
        status = serve.get_app_handle(APPLICATION).status.remote().result(timeout_s=30)
        return Spent(
            CpuSeconds(
                models=sum(cpu_seconds(pid) for group in pids.values() for pid in group),
                router=sum(cpu_seconds(pid) for pid in routers),
            ),
            ExchangeCounts(**status["exchange"]) if len(routers) == 1 else None,
        )


@contextmanager
def on_ray(spec: ClusterSpec) -> Iterator[System]:
    """Start Ray and everything on it; stop everything."""
    with LocalCluster(served_spec(spec)) as cluster:
        yield RaySystem(cluster)


# -- as plain processes ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """What the router serves, and where its replicas are."""

    spec: Mapping[str, Any]
    places: Mapping[str, Sequence[Place]]
    key: bytes


@dataclass(frozen=True, slots=True)
class PlainSystem:
    """`cuvee member` for each replica, and a router; without Ray."""

    address: str
    members: Sequence[int]  # process ids
    router: Child[ExchangeCounts]
    way: str = "without Ray"
    ray_address: str = ""

    def spent(self) -> Spent:
        """By all of these processes."""
        models = sum(cpu_seconds(pid) for pid in self.members)
        return Spent(CpuSeconds(models, cpu_seconds(self.router.pid)), self.router.ask())


@contextmanager
def as_processes(file: Path, spec: ClusterSpec) -> Iterator[System]:
    """Start everything from the blend file; stop everything."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cuvee-bench-")))
        key_file = folder / "member.key"
        key_file.touch(mode=0o600)
        key_file.write_text(secrets.token_hex(32))
        started = [
            (name, stack.enter_context(_member(file, name, key_file, folder)))
            for name, member in spec.members.items()
            for _ in range(max(1, member.min_replicas))
        ]
        places: dict[str, list[Place]] = {name: [] for name in spec.members}
        for name, process in started:
            places[name].append(Place(_address(name, process, folder)))
        plan = RouterPlan(served_spec(spec).to_mapping(), places, key_file.read_bytes())
        router: Child[ExchangeCounts] = stack.enter_context(Child(run_router, plan))
        pids = [process.pid for _, process in started]
        yield PlainSystem(router.address(), pids, router)


@contextmanager
def _member(file: Path, name: str, key_file: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*_CUVEE, "member", str(file), name, "--key-file", str(key_file), "--json"]
    with (folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _address(name: str, process: subprocess.Popen[str], folder: Path) -> str:
    """Where a member's process listens, once it does; raises Unavailable."""
    assert process.stdout is not None
    said = ""
    while line := process.stdout.readline():
        said += line
        if line.rstrip() == "}":
            told = json.loads(said)
            if told["ok"]:
                return str(told["address"])
    words = (said + (folder / f"{name}.log").read_text()).strip().splitlines()[-3:]
    raise Unavailable("MEMBER_FAILED", f"member {name!r} cannot start: {' '.join(words)}")


def run_router(plan: RouterPlan, pipe: Connection) -> None:
    """Serve the public edge until the pipe closes; says its address, then its exchanges' counts."""
    asyncio.run(_route(plan, pipe))


async def _route(plan: RouterPlan, pipe: Connection) -> None:
    spec = ClusterSpec.model_validate(plan.spec)
    async with running_router(spec, plan.places, plan.key) as process:
        await process.ready()
        pipe.send(address_of(spec.serving.host, process.edge.port))
        await answer_until_closed(pipe, lambda question: process.exchanges.counts)


# -- at rest --------------------------------------------------------------------------------------


def idle_cpu(system: System, seconds: float) -> CpuSeconds:
    """What it uses per second while nobody asks: metrics, health checks, pings."""
    before = system.spent().cpu
    time.sleep(seconds)
    return (system.spent().cpu - before).scaled(1 / seconds)
