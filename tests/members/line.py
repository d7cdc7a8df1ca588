"""A served replica and a router's way to it: lease, secret, exchange over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.errors import CuveeError
from cluster.members.base import Draw, MemberInfo, Step
from cluster.members.direct import DirectLease, DirectMember
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.leases import LeaseGrant
from cluster.members.seat import Seat
from cluster.members.server import MemberServer
from tests.members.factories import load_of, make_replica, slowly

_ENDLESS = Step(0, Draw(0, 100_000))


@dataclass
class Line:
    """One replica behind its port, and what is held on it."""

    server: MemberServer
    pool: ExchangePool
    member: DirectMember

    async def lease(self) -> DirectLease:
        return await self.member.lease(1)

    @property
    def num_held(self) -> tuple[int, int]:
        """Leases and sequences."""
        return len(self.server.leases), self.server.replica.num_sequences

    async def freed(self) -> None:
        """Wait until nothing is held; the test's time limit is the only clock."""
        while self.num_held != (0, 0):
            await asyncio.sleep(0.005)
        while load_of(self.server.replica).num_free_pages < load_of(self.server.replica).num_pages:
            await asyncio.sleep(0.005)


@dataclass
class GrantedLease:
    """A lease by its grant alone, true or forged; whoever has the call ends it."""

    pool: ExchangePool
    grant: LeaseGrant

    @property
    def info(self) -> MemberInfo:
        return self.grant.info

    @property
    def transport(self) -> LeaseTransport:
        return LeaseTransport(self.pool, self.grant)

    async def release(self) -> None:
        pass


@asynccontextmanager
async def served() -> AsyncIterator[Line]:
    """A replica of one token a byte, on loopback."""
    replica = make_replica("bytes", before_pass=slowly)
    server, pool = MemberServer(replica), ExchangePool()
    await server.start("127.0.0.1")
    try:
        yield Line(server, pool, DirectMember("bytes", [server], pool))
    finally:
        await pool.close()
        await server.stop()
        replica.stop()


async def begun(seat: Seat) -> asyncio.Task[CuveeError | None]:
    """An endless run whose first token has come; gives what it fails with."""
    has_spoken = asyncio.Event()

    async def speak() -> CuveeError | None:
        try:
            seat.begin(_ENDLESS)
            while (await seat.heard()).end is None:
                has_spoken.set()
        except CuveeError as error:
            return error
        return None

    task = asyncio.create_task(speak())
    await has_spoken.wait()
    return task
