"""What members' replicas tell Prometheus, through Ray's exporter on each node.

Ray puts `ray_` before the names, and labels each with the Serve deployment and the replica.
"""

from __future__ import annotations

import asyncio

from ray.serve.metrics import Gauge

from cluster.members.pressure import PressureGauge
from deployments.metric_names import MEMBER_GAUGES

_INTERVAL_S = 5.0


class MemberMetrics:
    """Tells one replica's pressure for as long as the replica lives."""

    def __init__(self, member: str, gauge: PressureGauge) -> None:
        """`gauge`: one of its own, since reading it begins its next mean."""
        self._gauge = gauge
        self._told = {
            field: Gauge(name, description=words, tag_keys=("member",))
            for field, (name, words) in MEMBER_GAUGES.items()
        }
        for told in self._told.values():
            told.set_default_tags({"member": member})
        self._telling = asyncio.create_task(self._tell())

    def stop(self) -> None:
        """Tell no more."""
        self._telling.cancel()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            for field, value in self._gauge.read().stats().items():
                self._told[field].set(value)
