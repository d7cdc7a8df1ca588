"""What Ray's own autoscaler makes of the rendered groups: replicas without a place become pods."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from deployments.kubernetes.overlays import OVERLAYS
from deployments.placement import asked_of_node
from tests.kubernetes.objects import groups_of, objects_of, served_spec


def launched(overlay: str, wanted: dict[str, int]) -> dict[str, int]:
    """The pods of each group that are made at once for so many replicas, from nothing."""
    objects = objects_of(overlay)
    types = {group["groupName"]: node_type(group) for group in groups_of(objects)}
    spec = served_spec(objects)
    asked = {f"member-{name}": member.resources for name, member in spec.members.items()}
    asked["router"] = spec.serving.routers.resources
    demands = [
        ResourceRequestUtil.make(asked_of_node(asked[name]))
        for name, num in wanted.items()
        for _ in range(num)
    ]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=100,
        resource_requests=ResourceRequestUtil.group_by_count(demands),
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    return dict(Counter({r.instance_type: r.count for r in reply.to_launch}))


def node_type(group: Any) -> NodeTypeConfig:
    read = _node_type_from_group_spec(group, is_head=False)
    return NodeTypeConfig(
        group["groupName"], read["min_workers"], read["max_workers"], resources=read["resources"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_demand_every_pool_has_its_least(overlay: str) -> None:
    least = {g["groupName"]: g["minReplicas"] for g in groups_of(objects_of(overlay))}
    assert launched(overlay, {}) == {name: num for name, num in least.items() if num}


def test_replicas_without_a_place_grow_their_own_pool_and_no_other() -> None:
    before = launched("production", {})
    after = launched("production", {"member-large": 5, "router": 3})
    assert after == before | {"member-large": 5, "router": 3}


def test_two_replicas_that_share_a_gpu_are_one_pod() -> None:
    assert launched("gpu", {"member-small": 5})["member-small"] == 3


def test_as_many_as_the_file_allows_are_placed_and_no_more() -> None:
    assert launched("production", {"member-large": 8})["member-large"] == 8
    with pytest.raises(AssertionError):  # the ninth has no place anywhere
        launched("production", {"member-large": 9})
