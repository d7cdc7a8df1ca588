"""Pod templates of the head and of each pool: probes, shutdown, security, volumes."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.spec import ClusterSpec
from deployments.kubernetes.nodes import GPU, placement
from deployments.kubernetes.options import (
    CONFIG_FOLDER,
    EDGE_PORT,
    EXCHANGE_PORT,
    METRICS_PORT,
    MODELS_FOLDER,
    Object,
    RenderOptions,
)
from deployments.kubernetes.pools import Pool
from deployments.kubernetes.site import downloads, drain_s, needs_volume

POOL_LABEL = "cuvee.dev/pool"
RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080}
HEAD_METRICS = {"as-metrics": 44217, "dash-metrics": 44227}
_SERVE = {"serve": 8000}  # by this name KubeRay makes its own Service, or nothing at all
AGENT_PORT = 52365  # of Ray's agent on every node, which answers probes

# Shutdown: endpoints leave the balancers, then the node drains, then everything ends by itself.
LEAVE_S = 10
_AFTER_REPLIES_S = 15  # for Serve to note that the last one has ended
_SPARE_S = 30

_USER = 10001  # of the image; no user of any node
_HUB_FOLDER = f"{CONFIG_FOLDER}/hub"

SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
}
TMP_MOUNT: Object = {"name": "tmp", "mountPath": "/tmp"}


def head_template(spec: ClusterSpec, options: RenderOptions) -> Object:
    """The head runs Ray's and Serve's control and no replica, and outlives the others' drain."""
    container = {
        "name": "ray-head",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _env(spec, {}),
        "ports": [_port(name, port) for name, port in (RAY_PORTS | _SERVE | HEAD_METRICS).items()],
        "resources": _amounts({"cpu": "1", "memory": "2Gi"}, {"cpu": "2"}),
        "securityContext": SECURITY,
        "volumeMounts": [TMP_MOUNT, _SHM_MOUNT],
        "livenessProbe": _node_probe(period_s=10, failures=6),
        "readinessProbe": _node_probe(period_s=5, failures=3),
        "startupProbe": _node_probe(period_s=5, failures=60),
        "lifecycle": _sleep(LEAVE_S + drain_s(spec)),
    }
    pod = _pod(options, container, [], f"{options.name}-control")
    # The autoscaler in the head's pod speaks to Kubernetes, by rights that KubeRay gives it.
    pod["automountServiceAccountToken"] = True
    pod["terminationGracePeriodSeconds"] = LEAVE_S + drain_s(spec) + 2 * _SPARE_S
    labels = options.labels("head")
    # Without the head no pool grows: whoever empties nodes to save money must leave it.
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}


def pool_template(pool: Pool, spec: ClusterSpec, options: RenderOptions) -> Object:
    """The pods of one pool."""
    mounts, volumes = _files(pool, spec, options)
    container = {
        "name": "ray-worker",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _env(spec, _pool_env(pool, spec)),
        "ports": [_port(name, port) for name, port in _pool_ports(pool).items()],
        "resources": _pool_amounts(pool),
        "securityContext": SECURITY,
        "volumeMounts": mounts,
        # Neither depends on a model: one that loads for an hour is alive.
        "livenessProbe": _node_probe(period_s=10, failures=6),
        "startupProbe": _node_probe(period_s=5, failures=60),
        "readinessProbe": _readiness(pool),
        "lifecycle": _sleep(LEAVE_S),
    }
    pod = _pod(options, container, volumes, _priority(pool, options))
    pod["serviceAccountName"] = f"{options.name}-worker"
    pod["terminationGracePeriodSeconds"] = LEAVE_S + node_drain_s(spec) + _SPARE_S
    pod |= placement(pool, pool_labels(pool, options))
    return {"metadata": {"labels": pool_labels(pool, options)}, "spec": pod}


def pool_labels(pool: Pool, options: RenderOptions) -> dict[str, str]:
    """What selects the pods of one pool, of whichever RayCluster."""
    return options.labels(pool.kind) | {POOL_LABEL: pool.name}


def node_drain_s(spec: ClusterSpec) -> int:
    """How long Ray waits for a node's replicas: more than Serve gives any of them."""
    return drain_s(spec) + _AFTER_REPLIES_S


def _pool_ports(pool: Pool) -> dict[str, int]:
    own = {
        "router": {"grpc": EDGE_PORT, "router-metrics": METRICS_PORT},
        "member": {"exchange": EXCHANGE_PORT},
        "ranker": {},
    }
    return {"metrics": RAY_PORTS["metrics"], **own[pool.kind]}


def _files(
    pool: Pool, spec: ClusterSpec, options: RenderOptions
) -> tuple[list[Object], list[Object]]:
    """What a pool's container mounts, and the volumes that are not in every pod."""
    mounts, volumes = [TMP_MOUNT, _SHM_MOUNT], []
    if pool.kind == "router":
        mounts.append({"name": "keys", "mountPath": f"{CONFIG_FOLDER}/keys", "readOnly": True})
        volumes.append({"name": "keys", "secret": {"secretName": f"{options.name}-keys"}})
    if needs_volume(spec):  # routers too: they read learned gates
        mounts.append({"name": "models", "mountPath": MODELS_FOLDER})
        claim = {"claimName": f"{options.name}-models"}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    if _asks_hub(pool, spec):
        mounts.append({"name": "hub", "mountPath": _HUB_FOLDER, "readOnly": True})
        token = {"secretName": f"{options.name}-hub", "optional": True}
        volumes.append({"name": "hub", "secret": token})
    return mounts, volumes


def _priority(pool: Pool, options: RenderOptions) -> str:
    return f"{options.name}-{'control' if pool.kind == 'router' else 'serving'}"


def _readiness(pool: Pool) -> Object:
    """Of routers and members, that they serve. Rankers have no port of their own."""
    if pool.kind == "ranker":
        return _node_probe(period_s=5, failures=3)
    port = EDGE_PORT if pool.kind == "router" else EXCHANGE_PORT
    probe = {"grpc": {"port": port}, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3}
    return probe | {"successThreshold": 1}


def _node_probe(*, period_s: int, failures: int) -> Object:
    http = {"path": "/api/healthz", "port": AGENT_PORT}
    times = {"periodSeconds": period_s, "timeoutSeconds": 5, "failureThreshold": failures}
    return {"httpGet": http, **times}


def _pod(options: RenderOptions, container: Object, volumes: list[Object], priority: str) -> Object:
    user = {"runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER, "runAsNonRoot": True}
    return {
        "securityContext": user
        | {"fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "priorityClassName": priority,
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "4Gi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            *volumes,
        ],
    }


_SHM_MOUNT: Object = {"name": "shm", "mountPath": "/dev/shm"}


def _pool_env(pool: Pool, spec: ClusterSpec) -> dict[str, str]:
    env = {}
    if pool.kind == "member":
        env["CUVEE_EXCHANGE_PORT"] = str(EXCHANGE_PORT)
    if needs_volume(spec):
        env |= {"CUVEE_HOME": f"{MODELS_FOLDER}/cuvee", "HF_HOME": f"{MODELS_FOLDER}/hub"}
    if _asks_hub(pool, spec):
        env["HF_TOKEN_PATH"] = f"{_HUB_FOLDER}/token"
    return env


def _asks_hub(pool: Pool, spec: ClusterSpec) -> bool:
    return pool.kind != "router" and downloads(spec)


def _env(spec: ClusterSpec, more: Mapping[str, str]) -> list[Object]:
    values = {
        "HOME": "/tmp",  # the only place to write
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(node_drain_s(spec)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
        **more,
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _pool_amounts(pool: Pool) -> Object:
    """Memory is guaranteed; CPUs may burst, since Ray's own processes come in bursts."""
    cpus = pool.num_cpus + 0.25
    requests = {"cpu": f"{round(cpus * 1000)}m", "memory": f"{pool.memory_bytes >> 20}Mi"}
    amounts = _amounts(requests, {"cpu": f"{round(cpus * 1000) + 1000}m"})
    if pool.num_gpus:
        for amount in amounts.values():
            amount[GPU] = str(pool.num_gpus)
    return amounts


def _amounts(requests: dict[str, str], limits: dict[str, str]) -> Object:
    """Everything has both, so that a namespace may have a quota."""
    disk = {"ephemeral-storage": "1Gi"}, {"ephemeral-storage": "6Gi"}
    return {"requests": requests | disk[0], "limits": requests | limits | disk[1]}


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _sleep(seconds: int) -> Object:
    return {"preStop": {"sleep": {"seconds": seconds}}}
