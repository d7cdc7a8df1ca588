"""A Ray cluster of several nodes with logical GPUs, and what becomes of replicas on it; as JSON.

A process of its own: one process is connected to one Ray cluster at a time, and the other tests
here share theirs.

    python -m tests.deployments.several_nodes
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from cluster.errors import InvalidRequest
from cluster.spec import ClusterSpec, parse_spec
from deployments.local import LocalCluster, application_details, connect, set_environment
from deployments.room import check_room

TINY = "dtype: float32, kv_memory: 4MiB"
ON_GPU = "max_per_node: 1, num_cpus: 0.1, num_gpus: 1, labels: {zone: 'in(east,west)'}"
SPEC = f"""
version: 1
members:
  spread: {{model: embedded:tiny-austen, replicas: 2, {TINY}, resources: {{{ON_GPU}}}}}
  packed: {{model: embedded:tiny-kjv, replicas: 2, {TINY},
            resources: {{num_cpus: 0.1}}}}
  split: {{model: embedded:tiny-austen, {TINY},
           resources: {{num_cpus: 0.2, num_gpus: 2, accelerator_type: L4}}}}
blends:
  all: {{method: mixture, span: token, members: {{spread: 1, packed: 1, split: 1}}}}
serving: {{port: 0}}
"""
IMPOSSIBLE = {
    "one GPU cannot be two shares of 0.6": "replicas: 6, resources: {num_gpus: 0.6}",
    "no node has so many GPUs": "resources: {num_gpus: 4}",
    "no GPU is of this kind": "resources: {num_gpus: 1, accelerator_type: H100}",
    "no node is there": "resources: {labels: {zone: south}}",
    "no node has it": "resources: {custom: {disk: 1}}",
}


def main() -> None:
    """Start the nodes, say what happened, leave nothing."""
    set_environment()
    os.environ["RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"] = "1"  # which Serve's controller inherits
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        local = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
        cluster.add_node(num_cpus=1, **local)
        cluster.add_node(num_cpus=4, num_gpus=2, labels={"zone": "east"}, **local)
        kind = {"accelerator_type:L4": 1}
        west = cluster.add_node(
            num_cpus=4, num_gpus=3, labels={"zone": "west"}, resources=kind, **local
        )
        found = {"refused": refusals(cluster.address)}
        notes: list[str] = []
        with LocalCluster(
            parse_spec(SPEC), ray_address=cluster.address, note=notes.append
        ) as served:
            found["replicas"] = replicas()
            cluster.remove_node(west)
            while len({n.split(" asks ")[0] for n in notes if n.startswith("no room")}) < 2:
                time.sleep(0.5)
                served.look_at_room()
        found["notes"] = notes
        json.dump(found, sys.stdout)
    finally:
        cluster.shutdown()


def refusals(address: str) -> dict[str, tuple[float, str, str]]:
    """How soon each impossible spec is refused, in s, in what words and of which field."""
    connect({"address": address})
    import ray

    found = {}
    for name, fields in IMPOSSIBLE.items():
        start_s = time.monotonic()
        try:
            check_room(_spec_with(fields), lambda note: None)
        except InvalidRequest as error:
            found[name] = (time.monotonic() - start_s, error.message, error.field)
    ray.shutdown()
    return found


def replicas() -> dict[str, list[tuple[str, list[int]]]]:
    """By Serve deployment: the node of each replica, and which of its GPUs it has."""
    return {
        name: [
            (replica["node_id"], _gpus(replica["actor_id"])) for replica in deployment["replicas"]
        ]
        for name, deployment in application_details()["deployments"].items()
    }


def _gpus(actor_id: str) -> list[int]:
    import ray._private.state
    from ray.core.generated import gcs_pb2

    accessor = ray._private.state.state._connect_and_get_accessor()
    told: Any = gcs_pb2.ActorTableData.FromString(
        accessor.get_actor_info(ray.ActorID.from_hex(actor_id))
    )
    return sorted(
        share.index
        for entry in told.resource_mapping
        if entry.name == "GPU"
        for share in entry.resource_ids
        if share.quantity > 0
    )


def _spec_with(fields: str) -> ClusterSpec:
    return parse_spec(
        f"version: 1\nmembers: {{a: {{model: embedded:tiny-austen, {fields}}}}}\n"
        "blends: {one: {method: mixture, members: {a: 1}}}\n"
    )


if __name__ == "__main__":
    main()
