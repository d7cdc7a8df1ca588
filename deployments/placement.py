"""Where replicas run: a model's resources in Serve's terms, and in those of `deployments.fit`.

Serve asks Ray to spread the replicas of a Serve deployment over nodes, as far as there is room;
`max_per_node` makes that a rule. All GPUs of a replica are its actor's own, hence of one node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster.spec import ClusterSpec, PlacedSpec, ResourcesSpec
from deployments.fit import GPU, Ask
from deployments.stages import ROUTER

Matches = Callable[[Mapping[str, str]], frozenset[str]]  # names of the nodes with such labels

_KIND_SHARE = 0.001  # of the resource that a node with such GPUs has: Ray's own way to ask for it


def serve_options(resources: ResourcesSpec) -> dict[str, Any]:
    """What a Serve deployment takes, but for how many replicas there are."""
    actor: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
    if resources.memory_bytes is not None:
        actor["memory"] = resources.memory_bytes
    if resources.accelerator_type is not None:
        actor["accelerator_type"] = resources.accelerator_type
    if resources.custom:
        actor["resources"] = dict(resources.custom)
    if resources.labels:
        actor["label_selector"] = dict(resources.labels)
    if resources.max_per_node is None:
        return {"ray_actor_options": actor}
    return {"ray_actor_options": actor, "max_replicas_per_node": resources.max_per_node}


def asked_of_node(resources: ResourcesSpec) -> dict[str, float]:
    """What one replica takes, by Ray's names; only what is above 0."""
    asked = {"CPU": resources.num_cpus, GPU: resources.num_gpus}
    asked["memory"] = float(resources.memory_bytes or 0)
    if resources.accelerator_type is not None:
        asked[f"accelerator_type:{resources.accelerator_type}"] = _KIND_SHARE
    return {key: amount for key, amount in {**asked, **resources.custom}.items() if amount > 0}


def asks_of(spec: ClusterSpec, matches: Matches, *, at_most: bool = False) -> list[Ask]:
    """What all replicas ask for when there are as few as may be; `at_most`: as many.

    Of a model that may have none there must be room for one, or nobody could ever ask it.
    """
    models: list[tuple[str, str, PlacedSpec]] = [
        *(("member", name, member) for name, member in spec.members.items()),
        *(("ranker", name, ranker) for name, ranker in spec.rankers.items()),
    ]
    asks = [
        Ask(
            deployment=f"{kind}-{name}",
            part=f"{kind} {name!r}",
            field=f"{kind}s.{name}.resources",
            num=placed.max_replicas if at_most else max(1, placed.min_replicas),
            each=asked_of_node(placed.resources),
            labels=placed.resources.labels,
            allowed=matches(placed.resources.labels),
            max_per_node=placed.resources.max_per_node,
        )
        for kind, name, placed in models
    ]
    routers = spec.serving.routers
    resources = routers.resources
    return [
        *asks,
        Ask(
            deployment=ROUTER,
            part=ROUTER,
            field="serving.routers",
            num=routers.max if at_most else routers.min,
            each=asked_of_node(resources),
            labels=resources.labels,
            allowed=matches(resources.labels),
            max_per_node=resources.max_per_node,
        ),
    ]
