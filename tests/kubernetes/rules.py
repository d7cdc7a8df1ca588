"""What must hold of every installation, beyond what schemas can say. Each rule gives its findings.

Each has cost somebody an outage on a real control plane; the comments say which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from deployments.kubernetes.options import Object
from deployments.placement import asked_of_node
from tests.kubernetes.objects import (
    Objects,
    cluster_of,
    containers,
    group,
    groups_of,
    of_kind,
    one,
    selected,
    served_spec,
    templates,
)

Rule = Callable[[Objects], Iterator[str]]
RULES: dict[str, Rule] = {}


def rule(check: Rule) -> Rule:
    RULES[check.__name__] = check
    return check


@rule
def ray_service_is_current_and_has_no_alpha_field(objects: Objects) -> Iterator[str]:
    """v1alpha1 goes away; one alpha field makes the whole RayService invalid."""
    service, cluster = one(objects, "RayService"), cluster_of(objects)
    if service["apiVersion"] != "ray.io/v1":
        yield service["apiVersion"]
    yield from cluster.keys() & {"networkPolicy", "tlsOptions", "historyServerOptions"}
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "gcsFaultToleranceOptions.backend"


@rule
def ray_service_name_is_short(objects: Objects) -> Iterator[str]:
    name = one(objects, "RayService")["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield name


@rule
def upgrades_are_blue_and_green(objects: Objects) -> Iterator[str]:
    """Incremental upgrades move HTTP alone, and drop what serveService says."""
    strategy = one(objects, "RayService")["spec"]["upgradeStrategy"]["type"]
    if strategy != "NewCluster":
        yield strategy


@rule
def ray_is_the_locked_version(objects: Objects) -> Iterator[str]:
    locked = Path(__file__).parents[2] / "constraints.txt"
    version = cluster_of(objects)["rayVersion"]
    if f"ray=={version}\n" not in locked.read_text():
        yield version


@rule
def autoscaler_is_v2_and_can_run(objects: Objects) -> Iterator[str]:
    """v2 refuses other restart policies; its sidecar needs /tmp where the root is read-only."""
    cluster = cluster_of(objects)
    options = cluster["autoscalerOptions"]
    if not cluster["enableInTreeAutoscaling"] or options["version"] != "v2":
        yield "not v2"
    for name, template in templates(objects).items():
        if template["spec"].get("restartPolicy", "Never") != "Never":
            yield name
    if "/tmp" not in {mount["mountPath"] for mount in options["volumeMounts"]}:
        yield "no /tmp"


@rule
def head_runs_no_replica_and_stays(objects: Objects) -> Iterator[str]:
    head = cluster_of(objects)["headGroupSpec"]
    for amount in ("num-cpus", "num-gpus"):
        if head["rayStartParams"].get(amount) != "0":
            yield amount
    evict = head["template"]["metadata"].get("annotations", {})
    if evict.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
        yield "may be evicted to save a node"
    if any(
        "gpu" in key for key in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    ):
        yield "has a GPU"


@rule
def kuberay_finds_its_ports(objects: Objects) -> Iterator[str]:
    """A head that names ports must name these: without `serve` no RayService is ever ready."""
    (container,) = templates(objects)["head"]["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    yield from {"gcs-server", "dashboard", "metrics", "serve"} - named


@rule
def groups_tell_ray_what_they_offer(objects: Objects) -> Iterator[str]:
    """Ray reads GPUs from keys that end in gpu alone; KubeRay takes every such name for GPUs."""
    for found in groups_of(objects):
        offered = found["resources"]
        limits = found["template"]["spec"]["containers"][0]["resources"]["limits"]
        has_gpu = any("nvidia.com/" in key for key in limits)
        if has_gpu != (int(offered.get("GPU", "0")) > 0):
            yield f"{found['groupName']}: GPU"
        if found["rayStartParams"].keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{found['groupName']}: said twice"
        yield from (key for key in offered if key != "GPU" and key.lower().endswith("gpu"))
        if not 0 <= found["minReplicas"] <= found["replicas"] <= found["maxReplicas"]:
            yield f"{found['groupName']}: bounds"


@rule
def groups_hold_all_that_is_asked(objects: Objects) -> Iterator[str]:
    """As many replicas as the blend file allows find their resources in their own pool."""
    spec = served_spec(objects)
    asked = {"router": (spec.serving.routers.resources, spec.serving.routers.max)}
    asked |= {f"member-{n}": (m.resources, m.max_replicas) for n, m in spec.members.items()}
    asked |= {f"ranker-{n}": (r.resources, r.max_replicas) for n, r in spec.rankers.items()}
    for name, (resources, num_replicas) in asked.items():
        found = group(objects, name)
        limits = found["template"]["spec"]["containers"][0]["resources"]["limits"]
        memory = float(int(limits["memory"].removesuffix("Mi")) << 20)
        offered = {key: float(amount) for key, amount in found["resources"].items()}
        for key, amount in asked_of_node(resources).items():
            has = memory if key == "memory" else offered.get(key, 0.0)
            if has // amount * found["maxReplicas"] < num_replicas:
                yield f"{name}: {key}"


@rule
def drains_leave_some_and_always_end(objects: Objects) -> Iterator[str]:
    """A share, or maxUnavailable, wants a scale subresource that RayClusters lack: drains hang."""
    for budget in of_kind(objects, "PodDisruptionBudget"):
        spec, name = budget["spec"], budget["metadata"]["name"]
        pools = selected(objects, spec["selector"]["matchLabels"])
        least = sum(group(objects, pool)["minReplicas"] for pool in pools if pool != "head")
        if not isinstance(spec.get("minAvailable"), int) or not 0 < spec["minAvailable"] < least:
            yield f"{name}: {spec.get('minAvailable')} of {least}"
        if len(pools) != 1 or spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield name


@rule
def probes_are_ours_and_liveness_needs_no_model(objects: Objects) -> Iterator[str]:
    """KubeRay's own worker readiness fails at the first late answer, and wants Serve's proxy."""
    for name, container in containers(objects):
        ready, alive = container.get("readinessProbe", {}), container.get("livenessProbe", {})
        if ready.get("failureThreshold", 1) < 2 or "httpGet" not in alive:
            yield name
        if name.startswith(("router", "member")) and "grpc" not in ready:
            yield f"{name}: is ready without serving"
        ports = {port["containerPort"] for port in container["ports"]}
        if "grpc" in ready and ready["grpc"]["port"] not in ports:
            yield f"{name}: {ready['grpc']['port']}"


@rule
def replies_end_before_pods_do(objects: Objects) -> Iterator[str]:
    """preStop, Ray's drain and Serve's own fit in the grace; the head waits for all others."""
    spec, longest = served_spec(objects), 0
    for name, template in templates(objects).items():
        (container,) = template["spec"]["containers"]
        stop = container["lifecycle"]["preStop"]
        if "sleep" not in stop:  # `ray stop` would end what the drain protects
            yield f"{name}: {stop}"
            continue
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        drain_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        grace_s = template["spec"]["terminationGracePeriodSeconds"]
        sleep_s = stop["sleep"]["seconds"]
        if name == "head":
            if sleep_s < spec.limits.max_deadline_s or grace_s <= sleep_s:
                yield f"{name}: {sleep_s} of {grace_s}"
            continue
        longest = max(longest, grace_s)
        if not grace_s > sleep_s + drain_s:
            yield f"{name}: {grace_s}"
        if not drain_s > spec.serving.drain_s + 5 > spec.limits.max_deadline_s:
            yield f"{name}: drains for {drain_s}"
    if templates(objects)["head"]["spec"]["terminationGracePeriodSeconds"] < longest:
        yield "head: goes before others"


@rule
def services_select_ready_routers_alone(objects: Objects) -> Iterator[str]:
    for service in of_kind(objects, "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        if (
            selected(objects, spec["selector"]) != {"router"}
            or "ray.io/cluster" in spec["selector"]
        ):
            yield name
        if spec.get("publishNotReadyAddresses"):
            yield f"{name}: unready"
        for port in spec["ports"]:
            is_grpc = port["name"] == "grpc"
            if is_grpc and port.get("appProtocol") != "kubernetes.io/h2c":
                yield f"{name}: {port.get('appProtocol')}"
    if not any(s["spec"].get("clusterIP") == "None" for s in of_kind(objects, "Service")):
        yield "no headless one"


@rule
def network_is_closed_but_for_what_is_needed(objects: Objects) -> Iterator[str]:
    policies = {p["metadata"]["name"].split("-", 1)[1]: p["spec"] for p in _policies(objects)}
    inside = policies["inside"]
    if selected(objects, inside["podSelector"]["matchLabels"]) != templates(objects).keys():
        yield "not everybody is guarded"
    if set(inside["policyTypes"]) != {"Ingress", "Egress"}:
        yield "inside: not both ways"
    for name, spec in policies.items():
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for allowed in spec.get(way, []):
                if not allowed.get(peers):
                    yield f"{name}: open {way}"
                if name != "inside" and not allowed.get("ports"):
                    yield f"{name}: all ports"
        if any("ipBlock" in peer for a in spec.get("ingress", []) for peer in a.get("from", [])):
            yield f"{name}: from addresses"
    ports = {name: _ports(spec) for name, spec in policies.items()}
    if 53 not in ports["inside"] or 8265 not in ports.get("operator", ()):
        yield "no DNS, or no operator"
    if not {443, 6443} <= ports.get("autoscaler", set()):
        yield "no API server"


@rule
def pods_are_restricted(objects: Objects) -> Iterator[str]:
    namespace = one(objects, "Namespace")["metadata"]["labels"]
    if namespace.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "namespace"
    for name, template in templates(objects).items():
        spec = template["spec"]
        (container,) = spec["containers"]
        pod, own = spec["securityContext"], container["securityContext"]
        if not pod["runAsNonRoot"] or pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name}: pod"
        if own["capabilities"] != {"drop": ["ALL"]} or own["allowPrivilegeEscalation"]:
            yield f"{name}: container"
        if not own["readOnlyRootFilesystem"] or "hostPath" in str(spec["volumes"]):
            yield f"{name}: file system"
        if {"hostNetwork", "hostPID", "hostIPC"} & spec.keys():
            yield f"{name}: host"
        if name != "head" and spec["automountServiceAccountToken"]:
            yield f"{name}: has rights"


@rule
def containers_have_room(objects: Objects) -> Iterator[str]:
    for name, container in containers(objects):
        resources = container["resources"]
        for amount in ("cpu", "memory", "ephemeral-storage"):
            if not (resources["requests"].get(amount) and resources["limits"].get(amount)):
                yield f"{name}: {amount}"
        if not {"/tmp", "/dev/shm"} <= {m["mountPath"] for m in container["volumeMounts"]}:
            yield f"{name}: mounts"


@rule
def images_are_fixed(objects: Objects) -> Iterator[str]:
    for name, container in containers(objects):
        _, _, tag = container["image"].rpartition("/")[2].partition(":")
        if not tag or tag == "latest":
            yield f"{name}: {container['image']}"


@rule
def secrets_are_named_and_never_written(objects: Objects) -> Iterator[str]:
    yield from (item["metadata"]["name"] for item in of_kind(objects, "Secret"))
    for name, container in containers(objects):
        for entry in container["env"]:
            if "value" in entry and re.search("TOKEN|SECRET|PASSWORD|KEY", entry["name"]):
                is_setting = entry["name"] in ("TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH")
                yield from () if is_setting else (f"{name}: {entry['name']}",)
    if cluster_of(objects).get("authOptions", {}).get("mode") != "token":
        yield "Ray asks for no token"


@rule
def the_builder_finds_models(objects: Objects) -> Iterator[str]:
    """It runs on the head, and looks into models to know how many leases fit them."""
    volumes = {name: _claims(pod) for name, pod in templates(objects).items()}
    yield from (name for name, claims in volumes.items() if claims != volumes["head"])
    env = {e["name"]: e.get("value") for _, c in containers(objects) for e in c["env"]}
    is_downloading = "HF_TOKEN_PATH" in env
    reach = [p for p in _policies(objects) if p["metadata"]["name"].endswith("-downloads")]
    if is_downloading != bool(reach):
        yield "no way to the hub"


@rule
def weights_are_mounted_as_the_restricted_may(objects: Objects) -> Iterator[str]:
    """Whatever a template mounts is among its volumes, and claims are rendered."""
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    for name, template in templates(objects).items():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for mount in template["spec"]["containers"][0]["volumeMounts"]:
            if mount["name"] not in volumes:
                yield f"{name}: {mount['name']}"
        for volume in volumes.values():
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim and claim not in claims:
                yield f"{name}: {claim}"


def _claims(template: Object) -> set[str]:
    volumes = template["spec"]["volumes"]
    claims = [volume.get("persistentVolumeClaim") for volume in volumes]
    return {claim["claimName"] for claim in claims if claim}


def _policies(objects: Objects) -> Objects:
    return of_kind(objects, "NetworkPolicy")


def _ports(spec: dict[str, object]) -> set[int]:
    rules = [*spec.get("ingress", []), *spec.get("egress", [])]  # type: ignore[misc]
    return {port["port"] for allowed in rules for port in allowed.get("ports", [])}
