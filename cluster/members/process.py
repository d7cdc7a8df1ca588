"""One replica of one member as a plain process: what a Serve deployment runs, without Ray."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.errors import InternalError
from cluster.garbage import spare_what_stays
from cluster.members.build import build_replica
from cluster.members.granting import LeaseServer
from cluster.members.server import MemberServer
from cluster.members.sizing import num_leases
from cluster.spec import MemberSpec

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class MemberProcess:
    """A replica that runs here."""

    address: str  # host:port where routers get leases
    server: MemberServer

    async def watch(self) -> None:
        """Stay as long as the engine lives; raises InternalError when it has ended."""
        while self.server.replica.is_alive:  # noqa: ASYNC110  # it ends without an event
            await asyncio.sleep(_LOOK_S)
        raise InternalError("ENGINE_DEAD", "the engine has ended")


@asynccontextmanager
async def running_member(
    name: str, spec: MemberSpec, *, host: str, port: int = 0, key: bytes = b""
) -> AsyncIterator[MemberProcess]:
    """Load the member's model, listen for routers, and at the end stop both."""
    max_leases = await asyncio.to_thread(num_leases, spec)
    server = MemberServer(await build_replica(name, spec, on_lost=end_at_once))
    leases = LeaseServer([server], max_leases=max_leases, key=key)
    try:
        await server.start(host)
        await leases.start(host, port)
        spare_what_stays()
        yield MemberProcess(leases.address, server)
    finally:
        await leases.stop()
        await server.stop()
        server.replica.stop()


def end_at_once() -> None:
    """Of a replica over several devices one has failed: a pass may hang now, for ever.

    Routers see the exchange break and go on with another replica; who started this one starts a
    new one.
    """
    logging.shutdown()
    os._exit(1)
