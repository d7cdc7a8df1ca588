"""What the builder tells Serve of each deployment's number of replicas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.errors import InvalidRequest
from cluster.spec import parse_spec
from deployments.app import application, build
from deployments.scaling import LoadPolicy

FILE = """
version: 1
members:
  a: {model: embedded:tiny-austen, FIELDS}
blends:
  only: {method: mixture, members: {a: 1}}
serving: {port: 0, routers: ROUTERS}
"""


def deployments(fields: str = "", routers: str = "1") -> dict[str, Any]:
    """Serve's configurations by deployment."""
    root = application(parse_spec(FILE.replace("FIELDS", fields).replace("ROUTERS", routers)))
    (members,) = root._bound_deployment.init_args
    bound = [app._bound_deployment for app in (root, *members)]
    return {deployment.name: deployment._deployment_config for deployment in bound}


def test_a_number_of_replicas_is_kept() -> None:
    found = deployments("replicas: 3", routers="2")
    assert (found["member-a"].num_replicas, found["router"].num_replicas) == (3, 2)
    assert found["member-a"].autoscaling_config is None
    assert found["router"].autoscaling_config is None


@pytest.mark.parametrize(("by", "stat"), [("pressure", "working"), ("leases", "")])
def test_members_are_scaled_by_what_the_file_says(by: str, stat: str) -> None:
    fields = f"kv_memory: 1MiB, autoscaling: {{max_replicas: 4, target_leases: 6, by: {by}}}"
    config = deployments(fields)["member-a"]
    scaling = config.autoscaling_config
    kwargs = scaling.policy.policy_kwargs
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert kwargs == {"target": 6, "stat": stat, "max_calls": config.max_ongoing_requests}
    policy = scaling.policy.get_policy()  # Serve's copy of it
    assert policy.__name__ == LoadPolicy.__name__
    assert policy(**kwargs)._goals.target == 6
    assert (scaling.look_back_period_s, scaling.metrics_interval_s) == (20, 5)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (10, 300)


def test_a_member_may_sleep_and_reports_often_enough_for_its_window() -> None:
    scaling = deployments("autoscaling: {min_replicas: 0, max_replicas: 2, window_s: 2}")
    config = scaling["member-a"].autoscaling_config
    assert (config.min_replicas, config.initial_replicas) == (0, None)
    assert config.metrics_interval_s == 0.5


def test_routers_are_scaled_by_generations() -> None:
    config = deployments(routers="{max: 4, target_generations: 16}")["router"].autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert config.policy.policy_kwargs == {"target": 16, "stat": "generations"}


def test_a_config_files_text_keeps_the_order_of_blends_and_weights() -> None:
    text = FILE.replace("FIELDS", "").replace("ROUTERS", "1")
    text = text.replace("  only:", "  zebra: {method: mixture, members: {a: 1}}\n  only:")
    config = build({"spec": text})._bound_deployment._deployment_config
    assert list(json.loads(config.user_config["spec"])["blends"]) == ["zebra", "only"]


@pytest.mark.parametrize("args", [{}, {"spec": "", "more": ""}, {"version": 1}])
def test_other_arguments_of_a_config_file_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="expected spec alone"):
        build(args)


def test_routers_drain_and_are_placed_as_the_file_says() -> None:
    file = FILE.replace("FIELDS", "").replace(
        "routers: ROUTERS", "drain_s: 90, routers: {resources: {num_cpus: 1, custom: {edge: 1}}}"
    )
    router = application(parse_spec(file))._bound_deployment
    assert router._deployment_config.graceful_shutdown_timeout_s == 95
    options = router._replica_config.ray_actor_options
    assert (options["num_cpus"], options["resources"]) == (1, {"edge": 1})
