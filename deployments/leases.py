"""Leases by Serve: a streaming call that Serve balances, counts and cancels with its caller."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import Overloaded, Unavailable
from cluster.members.base import MemberInfo, Transport
from cluster.members.exchange import ExchangePool, LeaseTransport
from cluster.members.leases import LeaseGrant
from deployments.routing import num_replicas

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0


class ServeLease:
    """A lease that lives as long as its streaming call."""

    def __init__(self, calls: Any, grant: LeaseGrant, transport: Transport) -> None:
        self._calls = calls
        self._grant = grant
        self._transport = transport

    @property
    def info(self) -> MemberInfo:
        """What is leased."""
        return self._grant.info

    @property
    def transport(self) -> Transport:
        """How to reach it."""
        return self._transport

    async def release(self) -> None:
        """Cancel the call; Serve tells the replica, which ends the lease."""
        self._calls.cancel()


class ServeMember:
    """A member behind its Serve deployment."""

    def __init__(
        self,
        name: str,
        handle: DeploymentHandle[Any],
        exchanges: ExchangePool,
        wake_s: float | None = None,
    ) -> None:
        """`wake_s`: how long a lease waits while there is no replica, if that may be."""
        self._name = name
        self._exchanges = exchanges
        self._deployment = handle.deployment_name
        self._wake_s = wake_s
        # By gRPC, not by actor call: only there is the stream cancelled when the router dies.
        self._lease = handle.options(method_name="lease", stream=True, _by_reference=False)

    @property
    def name(self) -> str:
        """Its name in the blend file."""
        return self._name

    @property
    def is_gone(self) -> bool:
        """Whether Serve has no replica of it running, and would not start one for a lease."""
        return self._wake_s is None and num_replicas(self._deployment) == 0

    async def lease(self, timeout_s: float, affinity: str = "") -> ServeLease:
        """Hold one replica, trying others while those that Serve picks turn out to be dead."""
        retry_s = _FIRST_RETRY_S
        loop = asyncio.get_running_loop()
        if self._wake_s is not None and num_replicas(self._deployment) == 0:
            timeout_s = max(timeout_s, self._wake_s)
        deadline_s = loop.time() + timeout_s
        while True:
            try:
                return await self._try_lease(deadline_s - loop.time(), affinity)
            except TimeoutError:
                raise Overloaded(
                    "NO_FREE_REPLICA",
                    f"no replica of member {self._name!r} had room within {timeout_s:g} s",
                    retry_delay_s=retry_s,
                ) from None
            except BackPressureError as error:
                raise Overloaded(
                    "NO_FREE_REPLICA",
                    f"too many leases wait for member {self._name!r}",
                    retry_delay_s=_LONGEST_RETRY_S,
                ) from error
            except (RayError, RayServeException, StopAsyncIteration) as error:
                if loop.time() + retry_s >= deadline_s:
                    raise Unavailable(
                        "MEMBER_UNAVAILABLE",
                        f"no replica of member {self._name!r} could be reached within "
                        f"{timeout_s:g} s: {type(error).__name__}",
                    ) from error
            affinity = ""  # the preferred one may be what is dead
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _try_lease(self, timeout_s: float, affinity: str) -> ServeLease:
        handle = self._lease.options(session_id=affinity) if affinity else self._lease
        calls: Any = handle.remote()
        try:
            grant: LeaseGrant = await asyncio.wait_for(anext(calls), max(timeout_s, 0))
        except BaseException:
            calls.cancel()
            raise
        return ServeLease(calls, grant, LeaseTransport(self._exchanges, grant))
