"""Every object is what Kubernetes, KubeRay and their friends accept, to the last field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from deployments.kubernetes.overlays import OVERLAYS
from tests.kubernetes.objects import Objects, cluster_of, group, objects_of, one, serve_config
from tests.kubernetes.schemas import FOLDER, problems_of

needs_schemas = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no schemas of custom resources in {FOLDER} (CUVEE_K8S_SCHEMAS)"
)
BUILT_IN = ("v1", "policy/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_built_in_kinds_are_valid(overlay: str) -> None:
    found = [item for item in objects_of(overlay) if item["apiVersion"] in BUILT_IN]
    assert len(found) > 10
    assert [problem for item in found for problem in problems_of(item)] == []


@needs_schemas
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_are_valid(overlay: str) -> None:
    found = [item for item in objects_of(overlay) if item["apiVersion"] not in BUILT_IN]
    assert found
    assert [problem for item in found for problem in problems_of(item)] == []


def _template(objects: Objects) -> Any:
    return group(objects, "member-small")["template"]["spec"]


MISTAKES: dict[str, tuple[str, Callable[[Objects], object]]] = {
    "a name that is none": (
        "RayService",
        lambda o: cluster_of(o).update(rayVersoin="2"),
    ),
    "a wrong type": ("RayService", lambda o: group(o, "router").update(minReplicas="2")),
    "a strategy that is none": (
        "RayService",
        lambda o: cluster_of(o)["autoscalerOptions"].update(upscalingMode="Quick"),
    ),
    "a pod's field": ("RayService", lambda o: _template(o).update(tolerate=[])),
    "a probe's field": (
        "RayService",
        lambda o: _template(o)["containers"][0]["readinessProbe"]["grpc"].update(name="x"),
    ),
    "no template": ("RayService", lambda o: cluster_of(o)["headGroupSpec"].pop("template")),
    "a route's field": (
        "GRPCRoute",
        lambda o: one(o, "GRPCRoute")["spec"]["rules"][0].update(timeouts={"request": "0s"}),
    ),
    "a budget's field": (
        "PodDisruptionBudget",
        lambda o: one(o, "PodDisruptionBudget", "cuvee-router")["spec"].update(minAvailble=1),
    ),
    "a policy's type": (
        "NetworkPolicy",
        lambda o: one(o, "NetworkPolicy", "cuvee-inside")["spec"].update(policyTypes="Ingress"),
    ),
    "a service's port": (
        "Service",
        lambda o: one(o, "Service", "cuvee")["spec"]["ports"][0].update(port="9000"),
    ),
}


@needs_schemas
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake: str) -> None:
    kind, plant = MISTAKES[mistake]
    objects = objects_of("production")
    plant(objects)
    wrong = {item["kind"] for item in objects if item["kind"] == kind and _is_refused(item)}
    assert wrong == {kind}


def _is_refused(item: Any) -> bool:
    try:
        return bool(problems_of(item))
    except KeyError:  # nothing in it to look further into
        return True


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serves_own_schema_takes_the_configuration(overlay: str) -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    config = serve_config(objects_of(overlay))
    parsed = ServeDeploySchema.model_validate(config)
    assert [app.name for app in parsed.applications] == ["cuvee"]
    assert config.keys() <= ServeDeploySchema.model_fields.keys()  # others it would not look at
    assert config["applications"][0].keys() <= ServeApplicationSchema.model_fields.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rays_autoscaler_reads_what_each_group_offers(overlay: str) -> None:
    """By its own reader of RayClusters: a group that it misreads is never grown."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _node_type_from_group_spec

    for found in cluster_of(objects_of(overlay))["workerGroupSpecs"]:
        read = _node_type_from_group_spec(yaml.safe_load(yaml.safe_dump(found)), is_head=False)
        told = {name: int(amount) for name, amount in found["resources"].items()}
        assert {name: read["resources"].get(name, 0) for name in told} == told
        assert (read["min_workers"], read["max_workers"]) == (
            found["minReplicas"],
            found["maxReplicas"],
        )
