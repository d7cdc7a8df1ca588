"""The data plane's door: a call that shows no live lease is refused before it is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from cluster.members.leases import HeldLease, LeaseTable

if TYPE_CHECKING:  # at run time these classes take no arguments
    _Handler = grpc.RpcMethodHandler[Any, Any]
    _Context = grpc.aio.ServicerContext[Any, Any]

LEASE_ID_KEY = "cuvee-lease-id"
LEASE_SECRET_KEY = "cuvee-lease-secret-bin"
OPEN = "/grpc.health.v1.Health/Check"  # probes have no lease; it tells them one bit

_Metadata = Iterable[tuple[str, str | bytes]]


class LeaseInterceptor(grpc.aio.ServerInterceptor):
    """Lets in who shows a live lease's id and secret, whatever the method; probes without."""

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """A handler of one message would be called only once that has been read whole."""
        if handler_call_details.method == OPEN:
            return await continuation(handler_call_details)
        if shown_lease(handler_call_details.invocation_metadata, self._leases) is None:
            return grpc.stream_stream_rpc_method_handler(refuse)
        return await continuation(handler_call_details)


def shown_lease(metadata: _Metadata | None, leases: LeaseTable) -> HeldLease | None:
    """The live lease that a call's metadata names, with its secret."""
    given = dict(metadata or ())
    lease_id, secret = given.get(LEASE_ID_KEY), given.get(LEASE_SECRET_KEY)
    if isinstance(lease_id, str) and isinstance(secret, bytes):
        return leases.find(lease_id, secret)
    return None


async def refuse(requests: object, context: _Context) -> None:
    """End a call that may not go on; the same words whatever it lacks."""
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a live lease")
