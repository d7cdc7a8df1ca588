"""Leases without Ray: a small server beside a process's replicas; a call holds what it is granted.

It has a port of its own, so the exchange's door stays as it is: there only leases count. Who may
have leases shows a key that routers and members share; without one the port is loopback's.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from cluster.access.hosts import address_of, is_loopback
from cluster.errors import InternalError, InvalidRequest
from cluster.members.guard import refuse
from cluster.members.server import MemberServer
from cuvee.v1 import lease_pb2 as pb
from cuvee.v1 import lease_pb2_grpc

if TYPE_CHECKING:  # at run time these classes take no arguments
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[Any, Any]

MEMBER_KEY = "cuvee-member-key-bin"
MIN_KEY_BYTES = 16

_MAX_REQUEST_BYTES = 4096


class LeaseServer(lease_pb2_grpc.LeaseServiceServicer):
    """Grants leases on the replicas of this process to whoever shows the key."""

    def __init__(
        self, servers: Sequence[MemberServer], *, max_leases: int, key: bytes = b""
    ) -> None:
        """`max_leases`: on one replica at a time; who asks for more waits."""
        self.address = ""
        self._servers = servers
        self._key = key
        self._rooms = [asyncio.Semaphore(max_leases) for _ in servers]
        self._server = grpc.aio.server(
            interceptors=(_KeyInterceptor(key),),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
            ],
        )
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(self, self._server)

    async def start(self, host: str, port: int = 0) -> None:
        """Listen; port 0 is any free one. Raises InvalidRequest for an open door to a network."""
        if not (self._key or is_loopback(host)):
            raise InvalidRequest(
                "NO_MEMBER_KEY",
                f"got {host} and no key; expected a key that routers show, or a loopback address",
                field="host",
            )
        try:
            port = self._server.add_insecure_port(address_of(host, port))
        except RuntimeError as error:
            raise InternalError("NO_FREE_PORT", f"port {port} of {host} is taken") from error
        self.address = address_of(host, port)
        await self._server.start()

    async def stop(self) -> None:
        """Close the port; leases end with their calls."""
        await self._server.stop(grace=None)

    async def Hold(  # noqa: N802 (gRPC's name)
        self, request: pb.HoldRequest, context: _Context
    ) -> AsyncIterator[pb.HoldResponse]:
        """One grant, as soon as there is room; then nothing until the lease ends."""
        server = await self._asked_for(request, context)
        room = self._rooms[request.replica]
        async with room, aclosing(server.lease()) as grants:
            async for grant in grants:
                info = grant.info
                yield pb.HoldResponse(
                    address=grant.address,
                    lease_id=grant.lease_id,
                    lease_secret=grant.secret,
                    model=pb.LeasedModel(
                        name=info.model,
                        vocabulary=info.vocabulary,
                        max_context=info.max_context,
                        has_chat_template=info.has_chat_template,
                    ),
                )

    async def _asked_for(self, request: pb.HoldRequest, context: _Context) -> MemberServer:
        """The replica meant; a router with the wrong address is told what is here."""
        names = [server.replica.info.member for server in self._servers]
        if request.replica >= len(names) or names[request.replica] != request.member:
            words = f"got member {request.member!r}, replica {request.replica}; here: {names}"
            await context.abort(grpc.StatusCode.NOT_FOUND, words)
        return self._servers[request.replica]


class _KeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows the key, if there is one, before any message is read."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        given = dict(handler_call_details.invocation_metadata or ()).get(MEMBER_KEY, b"")
        if self._key and not (isinstance(given, bytes) and hmac.compare_digest(given, self._key)):
            return grpc.stream_stream_rpc_method_handler(refuse)
        return await continuation(handler_call_details)
