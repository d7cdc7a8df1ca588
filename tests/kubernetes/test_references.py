"""Names, ports, labels and selectors of one object are there in the others."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from cluster.router.guard import SCOPE_BY_METHOD
from deployments.kubernetes.overlays import OVERLAYS
from tests.kubernetes.objects import (
    Objects,
    cluster_of,
    groups_of,
    objects_of,
    of_kind,
    one,
    selected,
    serve_config,
    served_spec,
    spec_of,
    templates,
)

# What somebody else makes; docs/kubernetes.md says how.
SECRETS = {"cuvee-keys", "cuvee-hub", "cuvee-tls", "cuvee-redis", "cuvee-metrics-key"}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(overlay: str) -> Objects:
    return objects_of(overlay)


def names(objects: Objects, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in of_kind(objects, kind)}


def ports_of(objects: Objects, groups: set[str]) -> dict[str, int]:
    """Named ports that all of these groups have."""
    found = [
        {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        for name, template in templates(objects).items()
        if name in groups
    ]
    return {n: p for n, p in found[0].items() if all(other.get(n) == p for other in found)}


def mentions(item: Any, key: str) -> list[Any]:
    """Everything under this key, however deep."""
    if isinstance(item, list):
        return [found for inner in item for found in mentions(inner, key)]
    if not isinstance(item, dict):
        return []
    own = [item[key]] if key in item else []
    return own + [found for inner in item.values() for found in mentions(inner, key)]


def test_no_two_objects_have_one_name(objects: Objects) -> None:
    seen = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(seen) == len(set(seen))


def test_everything_is_in_one_namespace_that_is_there(objects: Objects) -> None:
    assert names(objects, "Namespace") == {"cuvee"}
    whole = {"Namespace", "PriorityClass"}
    assert {i["metadata"]["namespace"] for i in objects if i["kind"] not in whole} == {"cuvee"}


def test_service_ports_and_selectors_resolve(objects: Objects) -> None:
    for service in of_kind(objects, "Service"):
        pods = selected(objects, service["spec"]["selector"])
        assert pods
        for port in service["spec"]["ports"]:
            assert ports_of(objects, pods)[port["targetPort"]] == port["port"]


def test_policies_name_ports_that_pods_have(objects: Objects) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        pods = selected(objects, policy["spec"]["podSelector"]["matchLabels"])
        assert pods, policy["metadata"]["name"]
        for allowed in policy["spec"].get("ingress", []):
            for port in allowed.get("ports", []):
                assert port["port"] in ports_of(objects, pods).values()
        for peer in mentions(policy["spec"], "podSelector")[1:]:
            labels = peer["matchLabels"]
            is_ours = labels.get("app.kubernetes.io/name") == "cuvee"
            assert not is_ours or selected(objects, labels)


def test_every_probe_asks_a_port_that_listens(objects: Objects) -> None:
    serving = served_spec(objects).serving
    routers = ports_of(objects, {"router"})
    assert routers["grpc"] == serving.port == 9000
    assert serving.metrics is not None
    assert routers["router-metrics"] == serving.metrics.port
    for name, template in templates(objects).items():
        (container,) = template["spec"]["containers"]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        asked = container["readinessProbe"].get("grpc", {}).get("port")
        listens = {"router": serving.port}.get(name, int(env.get("CUVEE_EXCHANGE_PORT") or 0))
        assert asked is None or asked == listens


def test_pods_have_the_accounts_priorities_claims_and_secrets_they_name(objects: Objects) -> None:
    for name, template in templates(objects).items():
        pod = template["spec"]
        assert pod["priorityClassName"] in names(objects, "PriorityClass")
        if name != "head":  # KubeRay makes the head's own
            assert pod["serviceAccountName"] in names(objects, "ServiceAccount")
        for volume in pod["volumes"]:
            assert volume.get("secret", {}).get("secretName", "cuvee-keys") in SECRETS
    for key in ("secretKeyRef", "certificateRefs"):
        found = mentions(objects, key)
        flat = [one for ref in found for one in (ref if isinstance(ref, list) else [ref])]
        assert {reference["name"] for reference in flat} <= SECRETS


def test_keys_lie_where_the_spec_looks_for_them(objects: Objects) -> None:
    auth = served_spec(objects).serving.auth
    (container,) = templates(objects)["router"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert auth is not None
    assert auth.keys == f"{mounts['keys']}/keys.yaml"


def test_each_serve_deployment_has_a_group_and_its_slots(objects: Objects) -> None:
    spec = served_spec(objects)
    asked = {"router": spec.serving.routers.resources}
    asked |= {f"member-{name}": member.resources for name, member in spec.members.items()}
    asked |= {f"ranker-{name}": ranker.resources for name, ranker in spec.rankers.items()}
    assert [found["groupName"] for found in groups_of(objects)] == list(asked)
    for found in groups_of(objects):
        others = {f"{name}-slot" for name in asked} - {f"{found['groupName']}-slot"}
        assert f"{found['groupName']}-slot" in asked[found["groupName"]].custom
        assert not others & found["resources"].keys()


def test_the_blend_file_is_what_is_served(objects: Objects, overlay: str) -> None:
    """All but where it listens and where its replicas go."""
    given, served = spec_of(overlay), served_spec(objects)
    assert (served.blends, served.limits) == (given.blends, given.limits)
    assert list(served.blends) == list(given.blends)
    for name, member in given.members.items():
        assert served.members[name].model_copy(update={"resources": member.resources}) == member
    assert {name: served.revision_of(name) for name in served.blends} == {
        name: given.revision_of(name) for name in given.blends
    }


def test_routes_lead_to_services_and_leave_the_inside_alone(objects: Objects) -> None:
    for route in of_kind(objects, "GRPCRoute"):
        spec = route["spec"]
        gateway = one(objects, "Gateway", spec["parentRefs"][0]["name"])
        listeners = {found["name"]: found for found in gateway["spec"]["listeners"]}
        assert listeners[spec["parentRefs"][0]["sectionName"]]["hostname"] in spec["hostnames"]
        (rule,) = spec["rules"]
        (backend,) = rule["backendRefs"]
        service = one(objects, "Service", backend["name"])
        assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}
        open_to_all = {match["method"]["service"] for match in rule["matches"]}
        known = {method.split("/")[1] for method in SCOPE_BY_METHOD}
        assert open_to_all <= known - {"cuvee.v1.AdminService"}
    for certificate in of_kind(objects, "Certificate"):
        secrets = mentions(of_kind(objects, "Gateway"), "certificateRefs")
        assert [{"kind": "Secret", "name": certificate["spec"]["secretName"]}] in secrets


def test_the_builder_that_is_named_is_there(objects: Objects) -> None:
    (application,) = serve_config(objects)["applications"]
    module, _, function = application["import_path"].partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.loader is not None
    assert f"def {function}(" in str(found.loader.get_source(module))  # type: ignore[attr-defined]
    assert cluster_of(objects)["enableInTreeAutoscaling"]
