"""A member whose replicas live in known servers, in this process, leased without Ray: for tests.

The tokens take the same way as with Ray Serve: lease, secret, exchange over gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence

from cluster.errors import Unavailable
from cluster.members.affinity import preferred
from cluster.members.base import MemberInfo, ReplicaState
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.leases import LeaseGrant
from cluster.members.server import MemberServer

_POLL_S = 0.02


class DirectLease:
    """A lease that lives as long as the server's generator is held."""

    def __init__(
        self, held: AsyncGenerator[LeaseGrant, None], grant: LeaseGrant, exchanges: ExchangePool
    ) -> None:
        self._held = held
        self._grant = grant
        self._exchanges = exchanges

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self._grant.info

    @property
    def transport(self) -> LeaseTransport:
        """How to reach it."""
        return LeaseTransport(self._exchanges, self._grant)

    async def release(self) -> None:
        """Give it back."""
        await self._held.aclose()


class DirectMember:
    """A member over the given replicas, leased in turn."""

    def __init__(self, name: str, servers: Sequence[MemberServer], exchanges: ExchangePool) -> None:
        self.name = name
        self.servers = list(servers)  # may be changed while running: a lost one is taken out
        self._exchanges = exchanges
        self._turns = itertools.count()

    @property
    def is_gone(self) -> bool:
        """Whether all its servers were taken out."""
        return not self.servers

    async def lease(self, timeout_s: float, affinity: str = "") -> DirectLease:
        """Hold the replica preferred for the affinity, else the next one, once there is one."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not self.servers:
            if asyncio.get_running_loop().time() >= deadline_s:
                raise Unavailable("MEMBER_UNAVAILABLE", f"member {self.name!r} has no replica")
            await asyncio.sleep(_POLL_S)
        by_address = {server.address: server for server in self.servers}
        num_leases = {address: len(server.leases) for address, server in by_address.items()}
        address = preferred(affinity, num_leases)
        if address is None:
            address = self.servers[next(self._turns) % len(self.servers)].address
        held = by_address[address].lease()
        return DirectLease(held, await anext(held), self._exchanges)

    async def replicas(self) -> list[ReplicaState]:
        """How each of its servers is."""
        return [server.state() for server in self.servers]
