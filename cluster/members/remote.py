"""A member whose replicas are plain processes at known addresses, leased over gRPC without Ray.

A lease lives as long as its streaming call, as with Ray Serve. Nobody restarts what ends, and
nobody finds out by himself that a replica is frozen: that is what Ray is for.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from cluster.errors import Overloaded, Unavailable
from cluster.members.affinity import preferred
from cluster.members.base import MemberInfo, ReplicaState
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.granting import MEMBER_KEY
from cluster.members.leases import LeaseGrant
from cuvee.v1 import lease_pb2 as pb
from cuvee.v1 import lease_pb2_grpc

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0
_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_DOWN = grpc.ChannelConnectivity.TRANSIENT_FAILURE


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica's leases are had."""

    address: str  # host:port of its process's lease server
    index: int = 0  # among the replicas there

    def __str__(self) -> str:
        return f"{self.address}#{self.index}" if self.index else self.address


class RemoteMember:
    """A member over the replicas at the given places.

    Of two replicas taken at random it leases the one with fewer leases, as Serve's router does.
    """

    def __init__(
        self, name: str, places: Sequence[Place], exchanges: ExchangePool, key: bytes = b""
    ) -> None:
        """`key`: what the members' processes were given, if anything."""
        self.name = name
        self._exchanges = exchanges
        self._metadata = ((MEMBER_KEY, key),) if key else ()
        self._random = random.Random(name)
        self._channels = {
            place.address: grpc.aio.insecure_channel(place.address, _CHANNEL_OPTIONS)
            for place in places
        }
        self._num_leases = dict.fromkeys(places, 0)

    @property
    def is_gone(self) -> bool:
        """Whether none of its processes can be reached; gRPC goes on trying."""
        return not any(self._is_up(place) for place in self._num_leases)

    async def lease(self, timeout_s: float, affinity: str = "") -> RemoteLease:
        """Hold one replica, trying others while those that are chosen cannot be reached."""
        loop = asyncio.get_running_loop()
        deadline_s, retry_s = loop.time() + timeout_s, _FIRST_RETRY_S
        while True:
            place = self._choose(affinity)
            try:
                return await self._hold(place, deadline_s - loop.time())
            except TimeoutError:
                raise Overloaded(
                    "NO_FREE_REPLICA",
                    f"no replica of member {self.name!r} had room within {timeout_s:g} s",
                    retry_delay_s=_LONGEST_RETRY_S,
                ) from None
            except grpc.aio.AioRpcError as error:
                if loop.time() + retry_s >= deadline_s:
                    words = f"{error.code().name}: {error.details()}"
                    raise Unavailable(
                        "MEMBER_UNAVAILABLE",
                        f"member {self.name!r} at {place} granted no lease within "
                        f"{timeout_s:g} s: {words}",
                    ) from error
            affinity = ""  # the preferred one may be what is dead
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def replicas(self) -> list[ReplicaState]:
        """Nobody tells: a plain process counts for itself alone."""
        return []

    def count_out(self, place: Place) -> None:
        """A lease on this replica has ended."""
        self._num_leases[place] -= 1

    async def close(self) -> None:
        """Leave all processes."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def _hold(self, place: Place, timeout_s: float) -> RemoteLease:
        stub: Any = lease_pb2_grpc.LeaseServiceStub(self._channels[place.address])
        request = pb.HoldRequest(member=self.name, replica=place.index)
        self._num_leases[place] += 1
        call = stub.Hold(request, metadata=self._metadata)
        try:
            response = await asyncio.wait_for(anext(aiter(call)), max(timeout_s, 0))
        except BaseException:
            self.count_out(place)
            call.cancel()
            raise
        model = response.model
        info = MemberInfo(
            self.name, model.name, model.vocabulary, model.max_context, model.has_chat_template
        )
        grant = LeaseGrant(response.address, response.lease_id, response.lease_secret, info)
        return RemoteLease(self, place, call, LeaseTransport(self._exchanges, grant))

    def _choose(self, affinity: str) -> Place:
        up = [place for place in self._num_leases if self._is_up(place)] or list(self._num_leases)
        by_name = {str(place): place for place in up}
        name = preferred(affinity, {name: self._num_leases[p] for name, p in by_name.items()})
        if name is not None:
            return by_name[name]
        return min(self._random.choices(up, k=2), key=self._num_leases.__getitem__)

    def _is_up(self, place: Place) -> bool:
        return self._channels[place.address].get_state(try_to_connect=True) is not _DOWN


class RemoteLease:
    """A lease that lives as long as its call."""

    def __init__(
        self, member: RemoteMember, place: Place, call: Any, transport: LeaseTransport
    ) -> None:
        self._member = member
        self._place = place
        self._call = call
        self._transport = transport
        self._is_held = True

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self._transport.grant.info

    @property
    def transport(self) -> LeaseTransport:
        """How to reach it."""
        return self._transport

    async def release(self) -> None:
        """Give it back."""
        self._call.cancel()
        if self._is_held:
            self._is_held = False
            self._member.count_out(self._place)
