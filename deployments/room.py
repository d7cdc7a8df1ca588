"""Room on the nodes of a running Ray cluster: is there enough, and if not, what is missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import InvalidRequest
from cluster.spec import ClusterSpec
from deployments.fit import GPU, Ask, Node, Shortage, shortage
from deployments.placement import Matches, asks_of

Note = Callable[[str], None]  # tells the operator a line
Waiting = Callable[[ClusterSpec, Mapping[str, Any]], Mapping[str, str]]

_PENDING_S = 5.0  # a replica that has waited this long, and has no node with room, waits for one


def check_room(spec: ClusterSpec, note: Note) -> None:
    """Refuse a spec whose replicas cannot all be placed, however empty the cluster.

    Where Ray can add nodes, it is noted instead. So is what autoscaling may ask for in vain.
    """
    nodes, matches = _nodes()
    growing = is_growing()
    if missing := shortage(asks_of(spec, matches), nodes):
        if not growing:
            raise InvalidRequest("CANNOT_PLACE", missing.words, field=missing.ask.field)
        note(f"{missing.words}; waiting for Ray's autoscaler to add nodes")
    elif not growing and (missing := shortage(asks_of(spec, matches, at_most=True), nodes)):
        note(f"not all that autoscaling allows has a place: {missing.words}")


def waiting(spec: ClusterSpec, details: Mapping[str, Any]) -> dict[str, str]:
    """By Serve deployment: what its replicas wait for that no node has room for now, in words."""
    late_s = time.time() - _PENDING_S
    late = {
        deployment: num
        for deployment, state in details.get("deployments", {}).items()
        if (num := sum(_is_late(replica, late_s) for replica in state.get("replicas", ())))
    }
    if not late:
        return {}
    nodes, matches = _nodes()
    free = _free()
    found = {}
    for ask in asks_of(spec, matches):
        if ask.deployment in late:
            open_to_it = ask.allowed - _full(ask, details["deployments"][ask.deployment])
            if not any(_has_room(ask, free, name) for name in open_to_it):
                found[ask.deployment] = _waiting_words(ask, late[ask.deployment], nodes, free)
    return found


class RoomWatch:
    """Follows replicas that wait for room, and notes each change once."""

    def __init__(self, spec: ClusterSpec, note: Note, waiting: Waiting = waiting) -> None:
        self._spec = spec
        self._note = note
        self._waiting = waiting
        self._told: set[str] = set()

    def look(self, details: Mapping[str, Any]) -> Mapping[str, str]:
        """What waits now, as `waiting` says; whatever has not been told before is told."""
        found = self._waiting(self._spec, details)
        for deployment in found.keys() - self._told:
            self._note(f"no room for now: {found[deployment]}")
        # Serve gives up on a replica that waits and begins another: only all of them are news.
        whole = {name for name in self._told if _is_whole(details, name)}
        for deployment in whole:
            self._note(f"{deployment} has all its replicas")
        self._told = (self._told | found.keys()) - whole
        return found


def is_growing() -> bool:
    """Whether Ray's autoscaler knows of node types that it may add."""
    import ray._private.state

    config = ray._private.state.state.get_cluster_config()
    return config is not None and len(config.node_group_configs) > 0


def _nodes() -> tuple[list[Node], Matches]:
    """The cluster's nodes, empty, and who among them has which labels."""
    from ray._raylet import node_labels_match_selector  # type: ignore[attr-defined]

    alive, names = _alive()

    def matches(labels: Mapping[str, str]) -> frozenset[str]:
        return frozenset(
            names[node["NodeID"]]
            for node in alive
            if node_labels_match_selector(node["Labels"], dict(labels))
        )

    return [Node.empty(names[node["NodeID"]], node["Resources"]) for node in alive], matches


def _alive() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The nodes that are there, and their names by id."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return alive, {node["NodeID"]: _name(node, alive) for node in alive}


def _name(node: Mapping[str, Any], all_nodes: Sequence[Mapping[str, Any]]) -> str:
    """Its address; with its id where several share one."""
    address = str(node["NodeManagerAddress"])
    is_alone = sum(other["NodeManagerAddress"] == address for other in all_nodes) == 1
    return address if is_alone else f"{address}/{node['NodeID'][:6]}"


def _free() -> dict[str, Mapping[str, float]]:
    """What nobody has taken, by the node's name."""
    import ray._private.state

    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return {name: free.get(node_id, {}) for node_id, name in _alive()[1].items()}


def _full(ask: Ask, deployment: Mapping[str, Any]) -> set[str]:
    """Nodes that have as many of these replicas as a node may."""
    if ask.max_per_node is None:
        return set()
    on_node = Counter(replica.get("node_id") for replica in deployment["replicas"])
    return {name for i, name in _alive()[1].items() if on_node[i] >= ask.max_per_node}


def _is_whole(details: Mapping[str, Any], deployment: str) -> bool:
    state = details.get("deployments", {}).get(deployment)
    if state is None:
        return True
    states = [getattr(it["state"], "value", it["state"]) for it in state["replicas"]]
    return states.count("RUNNING") >= int(state["target_num_replicas"])


def _is_late(replica: Mapping[str, Any], late_s: float) -> bool:
    state = getattr(replica["state"], "value", replica["state"])
    is_placed = bool(replica.get("pid") or replica.get("node_id"))
    return state == "STARTING" and not is_placed and replica.get("start_time_s", 0.0) < late_s


def _has_room(ask: Ask, free: Mapping[str, Mapping[str, float]], name: str) -> bool:
    return all(free[name].get(key, 0.0) + 1e-6 >= amount for key, amount in ask.each.items())


def _waiting_words(
    ask: Ask, num: int, nodes: Sequence[Node], free: Mapping[str, Mapping[str, float]]
) -> str:
    now = [
        replace(node, left=free[node.name], gpus=(free[node.name].get(GPU, 0.0),)) for node in nodes
    ]
    return Shortage(replace(ask, num=num), 0, tuple(now)).words
