"""The router's replica on Serve: the public edge, and leases on members through their handles."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle

from cluster.members.exchange import ExchangePool
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import ClusterSpec
from deployments.leases import ServeMember
from deployments.ranker import ServeRanker

DRAIN_S = 30.0  # how long running replies may go on when a router is stopped


class RouterDeployment:
    """What Serve runs for each router replica."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        spec: dict[str, Any],
        members: dict[str, DeploymentHandle[Any]],
        rankers: dict[str, DeploymentHandle[Any]],
    ) -> None:
        parsed = ClusterSpec.model_validate(spec)
        self._exchanges = ExchangePool()
        self._router = Router(
            parsed,
            {name: ServeMember(name, handle, self._exchanges) for name, handle in members.items()},
            {name: ServeRanker(name, handle) for name, handle in rankers.items()},
        )
        self._edge = Edge(self._router)
        await self._edge.start(parsed.serving.host, parsed.serving.port)

    def status(self) -> dict[str, Any]:
        """Where the edge listens and which blends are ready."""
        return {"port": self._edge.port, "ready_blends": self._router.ready_blends}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The edge's load: Serve does not see what comes by our own port."""
        return {"generations": float(self._router.num_active)}

    async def __del__(self) -> None:
        """Serve awaits this at shutdown: let running replies finish."""
        if hasattr(self, "_edge"):
            await self._edge.stop(DRAIN_S)
            await self._exchanges.close()
