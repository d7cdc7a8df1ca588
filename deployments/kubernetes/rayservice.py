"""The RayService: Serve's configuration, the head, and a worker group for each pool."""

from __future__ import annotations

from cluster.spec import ClusterSpec
from deployments.kubernetes.options import RAY_VERSION, Object, RenderOptions
from deployments.kubernetes.pods import SECURITY, TMP_MOUNT, head_template, pool_template
from deployments.kubernetes.pools import Pool, pools_of
from deployments.kubernetes.site import in_pods
from deployments.kubernetes.text import dump_yaml
from deployments.stages import APPLICATION

# The old RayCluster goes so long after the new one serves: its routers still take calls meanwhile,
# so callers that have looked up addresses before find somebody there.
_OLD_CLUSTER_S = 120
_OBJECT_STORE_BYTES = 80_000_000  # tokens do not pass through it


def rayservice(spec: ClusterSpec, options: RenderOptions) -> Object:
    """The whole of it; raises InvalidRequest for what pods cannot have."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": options.metadata(),
        "spec": {
            "serveConfigV2": dump_yaml(serve_config(spec)),
            # Serve's own proxies carry nothing of ours, and the head takes no calls.
            "excludeHeadPodFromServeSvc": True,
            # A whole new RayCluster beside the old one: the other way moves HTTP alone.
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": _OLD_CLUSTER_S,
            "rayClusterConfig": _ray_cluster(spec, options),
        },
    }


def serve_config(spec: ClusterSpec) -> Object:
    """What `serve deploy` takes; the blend file goes to the builder as it goes to `cuvee up`."""
    mapping = in_pods(spec).model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_defaults=True
    )
    return {
        "proxy_location": "HeadOnly",
        "applications": [
            {
                "name": APPLICATION,
                "import_path": "deployments.app:build",
                "route_prefix": None,
                "args": {"spec": dump_yaml(mapping)},
            }
        ],
    }


def _ray_cluster(spec: ClusterSpec, options: RenderOptions) -> Object:
    cluster: Object = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},  # KubeRay makes one per RayCluster
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": options.node_idle_s,
            "upscalingMode": "Default",
            "imagePullPolicy": "IfNotPresent",
            "resources": {
                "requests": {"cpu": "250m", "memory": "512Mi", "ephemeral-storage": "256Mi"},
                "limits": {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
            },
            "securityContext": SECURITY,
            "volumeMounts": [TMP_MOUNT],
        },
        "headGroupSpec": {
            "rayStartParams": {  # no replica on the head
                "num-cpus": "0",
                "num-gpus": "0",
                "dashboard-host": "0.0.0.0",
                "object-store-memory": str(_OBJECT_STORE_BYTES),
            },
            "template": head_template(spec, options),
        },
        "workerGroupSpecs": [_worker_group(pool, spec, options) for pool in pools_of(spec)],
    }
    if options.has("redis"):
        password = {"name": f"{options.name}-redis", "key": "password"}
        cluster["gcsFaultToleranceOptions"] = {
            "redisAddress": options.redis_address,
            "redisPassword": {"valueFrom": {"secretKeyRef": password}},
        }
    return cluster


def _worker_group(pool: Pool, spec: ClusterSpec, options: RenderOptions) -> Object:
    return {
        "groupName": pool.name,
        "replicas": pool.min_pods,
        "minReplicas": pool.min_pods,
        "maxReplicas": pool.max_pods,
        "numOfHosts": 1,
        "rayStartParams": {"object-store-memory": str(_OBJECT_STORE_BYTES)},
        "resources": pool.ray_resources,
        "template": pool_template(pool, spec, options),
    }
