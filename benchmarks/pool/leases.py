"""Leases between processes: a streaming gRPC call that lives as long as the lease, as with Serve.

Ray Serve's handles do the same with more work of their own; what that costs a router is not here.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from cluster.errors import Unavailable
from cluster.members.base import MemberInfo
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.leases import LeaseGrant
from cluster.members.server import MemberServer

_SERVICE = "cuvee.benchmarks.Leases"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica's leases are had."""

    address: str  # of its process
    index: int  # there


def lease_handler(servers: Sequence[MemberServer]) -> grpc.GenericRpcHandler:
    """Grants leases on the replicas of this process."""

    async def lease(request: bytes, context: Any) -> AsyncIterator[bytes]:
        async with aclosing(servers[int(request)].lease()) as grants:
            async for grant in grants:
                fields = asdict(grant) | {"secret": grant.secret.hex()}
                yield json.dumps(fields).encode()

    method: Any = grpc.unary_stream_rpc_method_handler(lease)
    return grpc.method_handlers_generic_handler(_SERVICE, {"Lease": method})


class PoolMember:
    """A member whose replicas live in other processes.

    Of two replicas taken at random it leases the one with fewer leases, as Serve's router does.
    """

    def __init__(self, name: str, places: Sequence[Place], exchanges: ExchangePool) -> None:
        self.name = name
        self._exchanges = exchanges
        self._random = random.Random(name)
        channels = {p.address: grpc.aio.insecure_channel(p.address) for p in places}
        self._channels = list(channels.values())
        self._lease_on: list[tuple[Place, Any]] = [
            (place, channels[place.address].unary_stream(f"/{_SERVICE}/Lease")) for place in places
        ]
        self._num_leases = [0] * len(places)

    @property
    def is_gone(self) -> bool:
        """Its replicas stay."""
        return False

    async def lease(self, timeout_s: float, affinity: str = "") -> PoolLease:
        """Hold one replica; raises Unavailable."""
        drawn = self._random.choices(range(len(self._lease_on)), k=2)
        chosen = min(drawn, key=self._num_leases.__getitem__)
        place, method = self._lease_on[chosen]
        self._num_leases[chosen] += 1
        call = method(str(place.index).encode())
        try:
            fields = json.loads(await asyncio.wait_for(call.read(), timeout_s))
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            self._num_leases[chosen] -= 1
            words = f"a replica of member {self.name!r} granted no lease: {error!r}"
            raise Unavailable("MEMBER_UNAVAILABLE", words) from error
        grant = LeaseGrant(
            fields["address"],
            fields["lease_id"],
            bytes.fromhex(fields["secret"]),
            MemberInfo(**fields["info"]),
        )
        return PoolLease(self, chosen, call, grant)

    def count_out(self, chosen: int) -> None:
        """A lease on this replica has ended."""
        self._num_leases[chosen] -= 1

    def transport(self, grant: LeaseGrant) -> LeaseTransport:
        """How to reach the replica that granted it."""
        return LeaseTransport(self._exchanges, grant)

    async def close(self) -> None:
        """Leave all processes."""
        await asyncio.gather(*(channel.close() for channel in self._channels))


class PoolLease:
    """A lease that lives as long as its call."""

    def __init__(self, member: PoolMember, chosen: int, call: Any, grant: LeaseGrant) -> None:
        self._member = member
        self._chosen = chosen
        self._call = call
        self._grant = grant
        self._is_held = True

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self._grant.info

    @property
    def transport(self) -> LeaseTransport:
        """How to reach it."""
        return self._member.transport(self._grant)

    async def release(self) -> None:
        """Give it back."""
        self._call.cancel()
        if self._is_held:
            self._is_held = False
            self._member.count_out(self._chosen)
