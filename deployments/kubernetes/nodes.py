"""Which nodes a pool's pods may stand on: what the blend file asks, as affinity."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deployments.kubernetes.options import Object
from deployments.kubernetes.pools import Pool

GPU = "nvidia.com/gpu"

_PRODUCTS = {  # what NVIDIA's feature discovery calls the kinds of GPU that Ray names
    "T4": ("Tesla-T4",),
    "V100": ("Tesla-V100-SXM2-16GB", "Tesla-V100-SXM2-32GB"),
    "A10G": ("NVIDIA-A10G",),
    "A100": ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-PCIE-40GB"),
    "A100-80G": ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
    "L4": ("NVIDIA-L4",),
    "L40S": ("NVIDIA-L40S",),
    "H100": ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
    "H200": ("NVIDIA-H200", "NVIDIA-H200-NVL"),
}
_SELECTOR = re.compile(r"(?P<not>!?)(?:in\((?P<several>[^)]*)\)|(?P<one>.*))")


def placement(pool: Pool, labels: Mapping[str, str]) -> Object:
    """On which nodes: those with the GPUs asked for, spread over zones, then over nodes."""
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(labels)},
            "matchLabelKeys": ["ray.io/cluster"],  # a new revision counts for itself
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    found: Object = {"topologySpreadConstraints": spread}
    affinity: Object = {}
    if expressions := _node_expressions(pool):
        terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if pool.resources.max_per_node == 1:
        term = {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": dict(labels)},
            "matchLabelKeys": ["ray.io/cluster"],
        }
        affinity["podAntiAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    if affinity:
        found["affinity"] = affinity
    if pool.num_gpus:
        found["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return found


def _node_expressions(pool: Pool) -> list[Object]:
    """The blend file's labels and kind of GPU, in Kubernetes' terms."""
    found = [_expression(key, value) for key, value in pool.resources.labels.items()]
    if kind := pool.resources.accelerator_type:
        products = list(_PRODUCTS.get(kind, (kind,)))
        found.append({"key": "nvidia.com/gpu.product", "operator": "In", "values": products})
    return found


def _expression(key: str, value: str) -> Object:
    """Ray writes a label's value as `x`, `!x`, `in(x,y)` or `!in(x,y)`."""
    match = _SELECTOR.fullmatch(value)
    assert match is not None, "the last alternative takes anything"
    several = match["several"]
    values = [match["one"]] if several is None else [it.strip() for it in several.split(",")]
    return {"key": key, "operator": "NotIn" if match["not"] else "In", "values": values}
