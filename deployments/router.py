"""The router's replica on Serve: the public edge, and leases on members through their handles."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.garbage import spare_what_stays
from cluster.members.exchange import ExchangePool
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import ClusterSpec
from deployments.leases import ServeMember
from deployments.ranker import ServeRanker
from deployments.routing import suspect
from deployments.stages import MEMBER_PREFIX, RANKER_PREFIX


def user_config_of(spec: ClusterSpec) -> dict[str, str]:
    """The spec as Serve carries it to routers that run, without restarting them.

    As text: Serve compares mappings without their order, and blends have one.
    """
    return {"spec": json.dumps(spec.to_mapping())}


class RouterDeployment:
    """What Serve runs for each router replica; `reconfigure` comes first, and again at changes."""

    def __init__(self, models: list[DeploymentHandle[Any]]) -> None:
        """The handles are bound so that Serve deploys their models; here all come by name."""
        self._exchanges = ExchangePool(on_silence=suspect)
        self._edge: Edge | None = None
        self._changing: asyncio.Task[None] | None = None

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Serve this spec: at once at first, later as soon as its models are known."""
        spec = ClusterSpec.model_validate_json(config["spec"])
        members = {
            name: ServeMember(name, _handle(MEMBER_PREFIX + name), self._exchanges, member.wake_s)
            for name, member in spec.members.items()
        }
        rankers = {name: ServeRanker(name, _handle(RANKER_PREFIX + name)) for name in spec.rankers}
        if self._edge is None:
            self._edge = Edge(Router(spec, members, rankers))
            await self._edge.start(spec.serving.host, spec.serving.port)
            spare_what_stays()
            return
        if self._changing is not None:
            self._changing.cancel()
        # Serve must not wait for it: meanwhile it would route nothing here.
        self._changing = asyncio.create_task(self._edge.router.reconfigure(spec, members, rankers))

    def status(self) -> dict[str, Any]:
        """Which replica this is, where its edge listens, and what it serves."""
        assert self._edge is not None, "Serve configures before it calls"
        router = self._edge.router
        return {
            "replica": serve.get_replica_context().replica_id.unique_id,
            "port": self._edge.port,
            "is_ready": router.knows_all_members,
            "exchange": asdict(self._exchanges.counts),
            "revisions": {name: router.blend(name).revision for name in router.ready_blends},
            "spec": json.dumps(router.spec.to_mapping()),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The edge's load: Serve does not see what comes by our own port."""
        return {"generations": float(self._edge.router.num_active if self._edge else 0)}

    async def __del__(self) -> None:
        """Serve awaits this at shutdown: let running replies finish."""
        if self._changing is not None:
            self._changing.cancel()
        if self._edge is not None:
            await self._edge.stop(self._edge.router.spec.serving.drain_s)
        await self._exchanges.close()


def _handle(deployment: str) -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(deployment, serve.get_replica_context().app_name)
