"""A member's replica on Serve: one engine on its own device, one data-plane port."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import ray

from cluster.errors import InternalError
from cluster.garbage import put_off, spare_what_stays
from cluster.members.base import ReplicaState
from cluster.members.leases import LeaseGrant
from cluster.members.server import MemberServer
from cluster.spec import MemberSpec
from deployments.metrics import MemberMetrics
from deployments.routing import ADDRESS

# Where probes look for a replica: a pod's first one listens there, others after it.
PORT_VARIABLE = "CUVEE_EXCHANGE_PORT"


class MemberDeployment:
    """What Serve runs for each replica of a member."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, name: str, spec: dict[str, Any]
    ) -> None:
        put_off()
        # Here, since it brings torch along: the driver and the router do without.
        from cluster.members.build import build_replica
        from cluster.members.process import end_at_once

        parsed = MemberSpec.model_validate(spec)
        self._replica = await build_replica(name, parsed, on_lost=end_at_once)
        self._server = MemberServer(self._replica)
        self._gauge = self._server.gauge()
        self._metrics = MemberMetrics(name, self._server.gauge())
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        await self._server.start(host, int(os.environ.get(PORT_VARIABLE, "0")))
        spare_what_stays()

    async def lease(self) -> AsyncIterator[LeaseGrant]:
        """Hold this replica: the first item says where to speak to it; ends with the caller."""
        leases = self._server.lease()
        try:
            async for grant in leases:
                yield grant
        finally:
            await leases.aclose()

    def record_replica_metadata(self) -> dict[str, str]:
        """What Serve tells every router of this replica: who it is on the data plane."""
        return {ADDRESS: self._server.address}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The engine's pressure since Serve last asked; leases that wait it counts itself."""
        return self._gauge.read().stats()

    async def state(self) -> ReplicaState:
        """How this replica is, for people."""
        return self._server.state()

    def check_health(self) -> None:
        """Raise when the engine is gone: Serve then replaces the replica."""
        if not self._replica.is_alive:
            raise InternalError("ENGINE_DEAD", "the engine has ended")

    async def __del__(self) -> None:
        """Serve awaits this after the last lease has ended."""
        if hasattr(self, "_server"):
            self._metrics.stop()
            await self._server.stop()
            self._replica.stop()
