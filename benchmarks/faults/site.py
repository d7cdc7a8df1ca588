"""A cluster on two Ray nodes of this machine, where it can be hurt, and made whole again."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cli.call import Server
from cluster.spec import ClusterSpec, parse_spec
from cuvee.v1 import admin_pb2
from deployments.local import OBJECT_STORE_BYTES, LocalCluster, application_details, set_environment
from deployments.stages import APPLICATION, MEMBER_PREFIX, ROUTER

SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 64MiB,
           replicas: NUM, resources: {num_cpus: 1}}
  kjv: {model: embedded:tiny-kjv, dtype: float32, kv_memory: 64MiB, resources: {num_cpus: 1}}
blends:
  tokens: {method: mixture, span: token, members: {austen: 0.5, kjv: 0.5}}
serving: {port: PORT}
"""
STRUCK = "austen"  # the member with a replica on each node; all else fits on the first only

_NODE = {
    "include_dashboard": False,
    "object_store_memory": OBJECT_STORE_BYTES,
    "dashboard_agent_listen_port": 0,  # any: by itself the first node takes a fixed one
}
_POLL_S = 0.1
_SETTLE_S = 2.0  # by then the router has heard of what Serve knows
_HEAL_TIMEOUT_S = 180.0
_PIDS = re.compile(r"pid=(\d+)")


@dataclass(frozen=True, slots=True)
class Replica:
    """One process that Serve runs for us."""

    pid: int
    node_id: str
    is_running: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a reply is: the replica of the struck member that holds it, and its router."""

    address: str  # of the replica's exchange
    replica: Replica
    router: Replica


class Site:
    """The cluster, and its second node."""

    def __init__(self, cluster: LocalCluster, nodes: Any) -> None:
        self.address = cluster.address
        self.log_folder = Path(cluster.log_folder)
        self._nodes = nodes
        self._second = self._add_node()
        self.deploy(num_replicas=2)  # before, they would fill the first node
        self.await_whole()

    @property
    def second_node(self) -> str:
        """Its id."""
        found: str = self._second.node_id
        return found

    def replicas(self, deployment: str) -> list[Replica]:
        """Those with a process, as Serve sees them now."""
        found = application_details()["deployments"][deployment]["replicas"]
        return [
            Replica(r["pid"], r["node_id"], r["state"].value == "RUNNING")
            for r in found
            if r.get("pid")
        ]

    def spot(self) -> Spot:
        """Where the one reply under way is."""
        with Server(self.address) as server:
            status = server.admin.GetStatus(admin_pb2.GetStatusRequest())
        (member,) = (member for member in status.members if member.member == STRUCK)
        (address,) = (replica.address for replica in member.replicas if replica.sequences)
        pid = _listener(address)
        (replica,) = (r for r in self.replicas(MEMBER_PREFIX + STRUCK) if r.pid == pid)
        (router,) = self.replicas(ROUTER)
        return Spot(address, replica, router)

    def kill_second_node(self) -> None:
        """Its raylet, by SIGKILL; what ran there ends with it."""
        self._second.kill_raylet()

    def replace_second_node(self) -> None:
        """Another one in its place."""
        self._nodes.remove_node(self._second, allow_graceful=False)
        self._second = self._add_node()

    def deploy(self, num_replicas: int) -> None:
        """Ask Serve for so many replicas of the struck member, as `cuvee apply` does."""
        from ray import serve
        from ray.serve.api import RunTarget

        from deployments.app import application

        port = int(self.address.rpartition(":")[2])
        target = RunTarget(
            application(spec_of(port, num_replicas)), name=APPLICATION, route_prefix=None
        )
        serve.run_many([target], wait_for_applications_running=False)

    def await_whole(self, *gone: Replica) -> None:
        """Until everything runs again, none of it in the processes given."""
        pids = {replica.pid for replica in gone}

        def is_whole() -> bool:
            wanted = {MEMBER_PREFIX + STRUCK: 2, MEMBER_PREFIX + "kjv": 1, ROUTER: 1}
            for name, num in wanted.items():
                replicas = self.replicas(name)
                if sum(replica.is_running for replica in replicas) != num or len(replicas) != num:
                    return False
                if pids & {replica.pid for replica in replicas}:
                    return False
            return True

        await_that(is_whole)
        time.sleep(_SETTLE_S)

    def _add_node(self) -> Any:
        return self._nodes.add_node(num_cpus=1, **_NODE)


@contextmanager
def running_site() -> Iterator[Site]:
    """Two nodes with everything on them."""
    set_environment()  # before Ray is imported
    from ray.cluster_utils import Cluster

    nodes: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, **_NODE})
    try:
        with socket.socket() as found:  # a port that stays: a new router is found where the old was
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        with LocalCluster(spec_of(port, 1), ray_address=nodes.address) as cluster:
            yield Site(cluster, nodes)
    finally:
        nodes.shutdown()


def spec_of(port: int, num_replicas: int) -> ClusterSpec:
    """What is served."""
    return parse_spec(SPEC.replace("PORT", str(port)).replace("NUM", str(num_replicas)))


def await_that(is_so: Callable[[], bool]) -> None:
    """Poll; raises TimeoutError after minutes."""
    deadline_s = time.monotonic() + _HEAL_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the cluster was not whole after {_HEAL_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _listener(address: str) -> int:
    """The process that listens there."""
    port = address.rpartition(":")[2]
    command = ("ss", "--tcp", "--listening", "--numeric", "--processes", "sport", "=", f":{port}")
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(_PIDS.findall(lines)[0])
