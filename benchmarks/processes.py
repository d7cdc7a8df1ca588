"""The processor time of a cluster's replicas, found through Serve's details."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import CpuSeconds
from deployments.stages import APPLICATION, ROUTER

_CPUCLOCK_SCHED = 2  # Linux: processor time of all threads, in nanoseconds


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; as clock_getcpuclockid(3) does, which Python lacks."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


@dataclass(frozen=True, slots=True)
class ReplicaProcesses:
    """Process ids of what Serve runs for us."""

    routers: Sequence[int]
    members: Sequence[int]

    @classmethod
    def of_this_cluster(cls) -> ReplicaProcesses:
        """Of the cluster that this process is connected to; serve.status() has no process ids."""
        from ray.serve.context import _get_global_client

        client: Any = _get_global_client()
        deployments = client.get_serve_details()["applications"][APPLICATION]["deployments"]
        pids = {
            name: [replica["pid"] for replica in deployment["replicas"]]
            for name, deployment in deployments.items()
        }
        routers = pids.pop(ROUTER)
        return cls(routers, [pid for members in pids.values() for pid in members])

    def cpu(self) -> CpuSeconds:
        """Used so far, and by this process as the client."""
        return CpuSeconds(
            models=sum(cpu_seconds(pid) for pid in self.members),
            router=sum(cpu_seconds(pid) for pid in self.routers),
            client=time.process_time(),
        )
