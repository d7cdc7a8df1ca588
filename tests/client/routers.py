"""Routers in processes of their own, over the replicas of a rig, to be killed for good.

A *desk* in the rig's process hands out leases: one connection to it is one lease, so that leases
of a killed router end as they do with Ray Serve. As a program: `routers.py SPEC DESK PORT`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.members.base import MemberInfo
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.leases import LeaseGrant
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import parse_spec

if TYPE_CHECKING:  # a rig brings models with it, which routers have no need of
    from tests.rig import Rig

HOST = "127.0.0.1"


@asynccontextmanager
async def lease_desk(rig: Rig, path: Path) -> AsyncIterator[Path]:
    """Hands out leases of the rig's replicas, in turn, to whoever names a member."""
    turns = itertools.count()

    async def lend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        servers = rig.servers[(await reader.readline()).decode().strip()]
        held = servers[next(turns) % len(servers)].lease()
        grant = await anext(held)
        told = asdict(grant) | {"secret": grant.secret.hex()}
        writer.write(json.dumps(told).encode() + b"\n")
        await reader.read()  # until the other side is gone
        await held.aclose()
        writer.close()

    async with await asyncio.start_unix_server(lend, path):
        yield path


@dataclass
class DeskLease:
    """A lease that lives as long as its connection."""

    grant: LeaseGrant
    transport: LeaseTransport
    writer: asyncio.StreamWriter

    @property
    def info(self) -> MemberInfo:
        return self.grant.info

    async def release(self) -> None:
        self.writer.close()


@dataclass
class DeskMember:
    """A member whose leases come from the desk."""

    name: str
    desk: str
    exchanges: ExchangePool

    async def lease(self, timeout_s: float) -> DeskLease:
        reader, writer = await asyncio.open_unix_connection(self.desk)
        writer.write(self.name.encode() + b"\n")
        told = json.loads(await reader.readline())
        info, secret = MemberInfo(**told.pop("info")), bytes.fromhex(told.pop("secret"))
        grant = LeaseGrant(info=info, secret=secret, **told)
        return DeskLease(grant, LeaseTransport(self.exchanges, grant), writer)


class Routers:
    """Router processes on one spec and one desk."""

    def __init__(self, spec: str, desk: Path) -> None:
        self._spec = spec
        self._desk = desk
        self._processes: dict[int, Process] = {}  # by number, in the order of their start
        self._numbers = itertools.count()

    async def start(self, port: int = 0) -> tuple[int, int]:
        """Its number and its port, once all its blends are served."""
        arguments = [self._spec, str(self._desk), str(port)]
        process = await create_subprocess_exec(
            sys.executable, "-m", "tests.client.routers", *arguments, stdout=PIPE
        )
        number = next(self._numbers)
        self._processes[number] = process
        assert process.stdout is not None
        return number, int(await process.stdout.readline())

    def kill(self, number: int) -> None:
        """At once, without a word to anybody."""
        os.kill(self._processes[number].pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill those that are left."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def router_processes(rig: Rig, spec: str, folder: Path) -> AsyncIterator[Routers]:
    """Ways to start and kill routers over the rig's replicas."""
    async with AsyncExitStack() as stack:
        desk = await stack.enter_async_context(lease_desk(rig, folder / "desk"))
        routers = Routers(spec, desk)
        stack.push_async_callback(routers.close)
        yield routers


async def _serve(text: str, desk: str, port: int) -> None:
    spec, exchanges = parse_spec(text), ExchangePool()
    members = {name: DeskMember(name, desk, exchanges) for name in spec.members}
    router = Router(spec, members)
    edge = Edge(router)
    await edge.start(HOST, port)
    while not router.knows_all_members:
        await asyncio.sleep(0.02)
    print(edge.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
