"""Pools: the worker groups that a spec needs, one for routers and one for each model.

Every pool offers a Ray resource of its own, its *slots*, and its replicas ask for one slot each. So
a replica lands in its own pool and nowhere else, and Ray's autoscaler knows which pool to grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cluster.models.reference import ModelKind
from cluster.spec import ClusterSpec, FrozenMapping, MemberSpec, PlacedSpec, ResourcesSpec

_MIB = 1 << 20
_NODE_BYTES = 768 * _MIB  # what Ray's own processes take in a pod
_ROUTER_BYTES = 512 * _MIB
_TINY_MODEL_BYTES = 512 * _MIB  # an embedded one, with the libraries
_MODEL_BYTES = 8 << 30  # on CPUs, where the file does not say
_HOST_BYTES_PER_GPU = 16 << 30  # the same, beside a GPU

Kind = Literal["router", "member", "ranker"]


@dataclass(frozen=True, slots=True)
class Pool:
    """Pods that are alike; each holds `per_pod` replicas of one Serve deployment."""

    name: str  # of the worker group and of its Serve deployment
    kind: Kind
    resources: ResourcesSpec  # of one replica, as the blend file has them
    replica_bytes: int  # memory of one replica
    min_replicas: int
    max_replicas: int

    @property
    def slot(self) -> str:
        """The pool's own Ray resource. KubeRay takes any name that ends in `gpu` for GPUs."""
        return f"{self.name}-slot"

    @property
    def per_pod(self) -> int:
        """Replicas with a share of a GPU share one; all others have a pod to themselves."""
        share = self.resources.num_gpus
        num = math.floor(1 / share + 1e-6) if 0 < share < 1 else 1
        return min(num, self.resources.max_per_node or num)

    @property
    def min_pods(self) -> int:
        """Never fewer."""
        return math.ceil(self.min_replicas / self.per_pod)

    @property
    def max_pods(self) -> int:
        """Never more."""
        return math.ceil(self.max_replicas / self.per_pod)

    @property
    def num_gpus(self) -> int:
        """Whole GPUs of a pod."""
        return math.ceil(self.resources.num_gpus * self.per_pod - 1e-6)

    @property
    def num_cpus(self) -> float:
        """What a pod's replicas ask for."""
        return self.resources.num_cpus * self.per_pod

    @property
    def memory_bytes(self) -> int:
        """What a pod may take before it is ended."""
        return _NODE_BYTES + self.replica_bytes * self.per_pod

    @property
    def ray_resources(self) -> dict[str, str]:
        """What a pod offers to Ray, where CPUs and all else are whole numbers."""
        custom = {name: amount * self.per_pod for name, amount in self.resources.custom.items()}
        offered = {"CPU": max(1.0, self.num_cpus), "GPU": float(self.num_gpus), **custom}
        whole = {name: str(math.ceil(amount - 1e-6)) for name, amount in offered.items()}
        return whole | {self.slot: str(self.per_pod)}

    @property
    def in_pod(self) -> ResourcesSpec:
        """What one replica asks of Ray: nodes are chosen by Kubernetes, pods by their slots."""
        custom = FrozenMapping({**self.resources.custom, self.slot: 1.0})
        return self.resources.model_copy(
            update={"labels": FrozenMapping({}), "accelerator_type": None, "custom": custom}
        )


def pools_of(spec: ClusterSpec) -> list[Pool]:
    """The routers' pool, then the members' and the rankers', in the file's order."""
    routers = spec.serving.routers
    resources = routers.resources
    num_bytes = resources.memory_bytes or _ROUTER_BYTES
    return [
        Pool("router", "router", resources, num_bytes, routers.min, routers.max),
        *(_pool("member", name, member) for name, member in spec.members.items()),
        *(_pool("ranker", name, ranker) for name, ranker in spec.rankers.items()),
    ]


def in_pools(spec: ClusterSpec) -> ClusterSpec:
    """The spec with every replica in its pool."""
    found = {pool.name: pool.in_pod for pool in pools_of(spec)}

    def placed(kind: Kind, name: str, model: PlacedSpec) -> PlacedSpec:
        return model.model_copy(update={"resources": found[f"{kind}-{name}"]})

    routers = spec.serving.routers.model_copy(update={"resources": found["router"]})
    return spec.model_copy(
        update={
            "members": FrozenMapping({n: placed("member", n, m) for n, m in spec.members.items()}),
            "rankers": FrozenMapping({n: placed("ranker", n, r) for n, r in spec.rankers.items()}),
            "serving": spec.serving.model_copy(update={"routers": routers}),
        }
    )


def is_in_image(model: PlacedSpec) -> bool:
    """Whether the model is there before anything is downloaded or merged."""
    return model.reference is not None and model.reference.kind is ModelKind.EMBEDDED


def guessed_memory(spec: ClusterSpec) -> list[str]:
    """Fields that would say what a pod may take, and do not."""
    models = {"members": spec.members, "rankers": spec.rankers}
    return [
        f"{kind}.{name}.resources.memory"
        for kind, named in models.items()
        for name, model in named.items()
        if model.resources.memory_bytes is None and not is_in_image(model)
    ]


def _pool(kind: Kind, name: str, model: PlacedSpec) -> Pool:
    resources = model.resources
    bounds = model.min_replicas, model.max_replicas
    return Pool(f"{kind}-{name}", kind, resources, _replica_bytes(model), *bounds)


def _replica_bytes(model: PlacedSpec) -> int:
    if model.resources.memory_bytes is not None:
        return model.resources.memory_bytes
    if model.resources.num_gpus > 0:
        return math.ceil(_HOST_BYTES_PER_GPU * model.resources.num_gpus)
    cache = model.kv_memory_bytes if isinstance(model, MemberSpec) else None
    is_tiny = all(reference.kind is ModelKind.EMBEDDED for reference in model.references)
    return (_TINY_MODEL_BYTES if is_tiny else _MODEL_BYTES) + (cache or 0)
