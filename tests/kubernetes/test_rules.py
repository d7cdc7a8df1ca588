"""Every overlay keeps every rule, and every rule finds the mistake that it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deployments.kubernetes.overlays import OVERLAYS
from tests.kubernetes.objects import (
    Objects,
    cluster_of,
    group,
    objects_of,
    of_kind,
    one,
    templates,
)
from tests.kubernetes.rules import RULES


def findings(objects: Objects) -> dict[str, list[str]]:
    return {name: found for name, check in RULES.items() if (found := list(check(objects)))}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_every_rule(overlay: str) -> None:
    assert findings(objects_of(overlay)) == {}


def _pod(objects: Objects, name: str) -> Any:
    return templates(objects)[name]["spec"]


def _container(objects: Objects, name: str) -> Any:
    return _pod(objects, name)["containers"][0]


def _volume(objects: Objects, pod: str, name: str) -> Any:
    (found,) = [volume for volume in _pod(objects, pod)["volumes"] if volume["name"] == name]
    return found


def _policy(objects: Objects, name: str) -> Any:
    return one(objects, "NetworkPolicy", f"cuvee-{name}")["spec"]


def _service(objects: Objects) -> Any:
    return one(objects, "Service", "cuvee")["spec"]


def _budget(objects: Objects) -> Any:
    return one(objects, "PodDisruptionBudget", "cuvee-member-small")["spec"]


# By rule: the mistakes, as what is done to a right installation.
MISTAKES: list[tuple[str, Callable[[Objects], object]]] = [
    (
        "ray_service_is_current_and_has_no_alpha_field",
        lambda o: one(o, "RayService").update(apiVersion="ray.io/v1alpha1"),
    ),
    (
        "ray_service_is_current_and_has_no_alpha_field",
        lambda o: cluster_of(o).update(networkPolicy={"mode": "DenyAll"}),
    ),
    (
        "ray_service_is_current_and_has_no_alpha_field",
        lambda o: cluster_of(o)["gcsFaultToleranceOptions"].update(backend="rocksdb"),
    ),
    (
        "ray_service_name_is_short",
        lambda o: one(o, "RayService")["metadata"].update(name="c" * 48),
    ),
    (
        "upgrades_are_blue_and_green",
        lambda o: one(o, "RayService")["spec"]["upgradeStrategy"].update(
            type="NewClusterWithIncrementalUpgrade"
        ),
    ),
    ("ray_is_the_locked_version", lambda o: cluster_of(o).update(rayVersion="2.9.0")),
    (
        "autoscaler_is_v2_and_can_run",
        lambda o: cluster_of(o)["autoscalerOptions"].update(version="v1"),
    ),
    (
        "autoscaler_is_v2_and_can_run",
        lambda o: _pod(o, "member-small").update(restartPolicy="Always"),
    ),
    (
        "autoscaler_is_v2_and_can_run",
        lambda o: cluster_of(o)["autoscalerOptions"].update(volumeMounts=[]),
    ),
    (
        "head_runs_no_replica_and_stays",
        lambda o: cluster_of(o)["headGroupSpec"]["rayStartParams"].pop("num-gpus"),
    ),
    (
        "head_runs_no_replica_and_stays",
        lambda o: templates(o)["head"]["metadata"].pop("annotations"),
    ),
    (
        "kuberay_finds_its_ports",
        lambda o: _container(o, "head").update(
            ports=[p for p in _container(o, "head")["ports"] if p["name"] != "serve"]
        ),
    ),
    (
        "groups_tell_ray_what_they_offer",  # a slice of a GPU, which Ray cannot see
        lambda o: _container(o, "router")["resources"]["limits"].update(
            {"nvidia.com/mig-1g.10gb": "1"}
        ),
    ),
    (
        "groups_tell_ray_what_they_offer",
        lambda o: group(o, "member-small")["rayStartParams"].update({"num-gpus": "1"}),
    ),
    (
        "groups_tell_ray_what_they_offer",
        lambda o: group(o, "member-small")["resources"].update({"member-gpu": "1"}),
    ),
    ("groups_tell_ray_what_they_offer", lambda o: group(o, "ranker-judge").update(replicas=9)),
    ("groups_hold_all_that_is_asked", lambda o: group(o, "member-large").update(maxReplicas=7)),
    (
        "groups_hold_all_that_is_asked",
        lambda o: group(o, "member-large")["resources"].pop("member-large-slot"),
    ),
    (
        "groups_hold_all_that_is_asked",
        lambda o: _container(o, "member-large")["resources"]["limits"].update(memory="1024Mi"),
    ),
    ("drains_leave_some_and_always_end", lambda o: _budget(o).update(minAvailable="50%")),
    ("drains_leave_some_and_always_end", lambda o: _budget(o).update(minAvailable=2)),
    (
        "drains_leave_some_and_always_end",
        lambda o: (_budget(o).pop("minAvailable"), _budget(o).update(maxUnavailable=1)),
    ),
    (
        "drains_leave_some_and_always_end",
        lambda o: _budget(o).pop("unhealthyPodEvictionPolicy"),
    ),
    (
        "drains_leave_some_and_always_end",
        lambda o: _budget(o)["selector"].update(matchLabels={"app": "other"}),
    ),
    (
        "probes_are_ours_and_liveness_needs_no_model",
        lambda o: _container(o, "member-small").pop("readinessProbe"),
    ),
    (
        "probes_are_ours_and_liveness_needs_no_model",
        lambda o: _container(o, "member-small").update(livenessProbe={"grpc": {"port": 9100}}),
    ),
    (
        "probes_are_ours_and_liveness_needs_no_model",
        lambda o: _container(o, "router")["readinessProbe"]["grpc"].update(port=9001),
    ),
    (
        "replies_end_before_pods_do",
        lambda o: _pod(o, "router").update(terminationGracePeriodSeconds=30),
    ),
    (
        "replies_end_before_pods_do",
        lambda o: _container(o, "router")["lifecycle"].update(
            preStop={"exec": {"command": ["ray", "stop"]}}
        ),
    ),
    (
        "replies_end_before_pods_do",
        lambda o: _pod(o, "head").update(terminationGracePeriodSeconds=311),
    ),
    (
        "services_select_ready_routers_alone",  # KubeRay's own, which has members in it
        lambda o: _service(o).update(selector={"app": "cuvee"}),
    ),
    (
        "services_select_ready_routers_alone",
        lambda o: _service(o)["selector"].update({"ray.io/cluster": "cuvee-abcde"}),
    ),
    (
        "services_select_ready_routers_alone",
        lambda o: _service(o)["ports"][0].pop("appProtocol"),
    ),
    (
        "services_select_ready_routers_alone",
        lambda o: _service(o).update(publishNotReadyAddresses=True),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: _policy(o, "inside").update(podSelector={"matchLabels": {"app": "other"}}),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: _policy(o, "inside").update(policyTypes=["Ingress"]),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: _policy(o, "calls")["ingress"][0].pop("from"),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: _policy(o, "calls")["ingress"][0].pop("ports"),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: o.remove(one(o, "NetworkPolicy", "cuvee-autoscaler")),
    ),
    (
        "network_is_closed_but_for_what_is_needed",
        lambda o: o.remove(one(o, "NetworkPolicy", "cuvee-operator")),
    ),
    ("pods_are_restricted", lambda o: _pod(o, "router")["securityContext"].pop("seccompProfile")),
    ("pods_are_restricted", lambda o: _pod(o, "head").update(hostNetwork=True)),
    (
        "pods_are_restricted",
        lambda o: _container(o, "router")["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    (
        "pods_are_restricted",
        lambda o: _pod(o, "router").update(automountServiceAccountToken=True),
    ),
    (
        "pods_are_restricted",
        lambda o: _pod(o, "router")["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    ("containers_have_room", lambda o: _container(o, "head")["resources"]["limits"].pop("cpu")),
    ("containers_have_room", lambda o: _container(o, "head")["volumeMounts"].pop(0)),
    ("images_are_fixed", lambda o: _container(o, "head").update(image="cuvee:latest")),
    ("images_are_fixed", lambda o: _container(o, "head").update(image="registry:5000/cuvee")),
    (
        "secrets_are_named_and_never_written",
        lambda o: o.append({"kind": "Secret", "metadata": {"name": "keys"}}),
    ),
    (
        "secrets_are_named_and_never_written",
        lambda o: _container(o, "router")["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
    ),
    ("secrets_are_named_and_never_written", lambda o: cluster_of(o).pop("authOptions")),
    (
        "the_builder_finds_models",
        lambda o: o.remove(one(o, "NetworkPolicy", "cuvee-downloads")),
    ),
    (
        "the_builder_finds_models",  # mounted, but empty
        lambda o: _volume(o, "head", "models").update(persistentVolumeClaim=None, emptyDir={}),
    ),
    (
        "weights_are_mounted_as_the_restricted_may",
        lambda o: o.remove(one(o, "PersistentVolumeClaim")),
    ),
    (
        "weights_are_mounted_as_the_restricted_may",
        lambda o: _pod(o, "router")["volumes"].pop(),
    ),
]


@pytest.mark.parametrize(("rule", "mistake"), MISTAKES)
def test_a_mistake_is_found_by_its_rule_alone(
    rule: str, mistake: Callable[[Objects], object]
) -> None:
    objects = objects_of("production")
    mistake(objects)
    assert set(findings(objects)) == {rule}


def test_every_rule_has_its_mistakes() -> None:
    assert {rule for rule, _ in MISTAKES} == RULES.keys()
    assert of_kind(objects_of("production"), "PodDisruptionBudget")
