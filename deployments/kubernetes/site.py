"""A blend file as pods run it: where they listen, where keys and models lie, how they drain."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

from cluster.errors import InvalidRequest
from cluster.models.reference import ModelKind
from cluster.spec import AuthSpec, ClusterSpec, LearnedGate, MetricsSpec, RouteSpec, parse_mapping
from deployments.kubernetes.options import (
    CONFIG_FOLDER,
    EDGE_PORT,
    METRICS_PORT,
    MODELS_FOLDER,
)
from deployments.kubernetes.pools import in_pools, is_in_image

KEYS_FILE = "keys.yaml"


def in_pods(spec: ClusterSpec) -> ClusterSpec:
    """The spec that routers in pods serve; raises InvalidRequest for what pods cannot have.

    Callers show keys, the gateway or a mesh ends TLS, and policies close the network behind it.
    """
    _check_files(spec)
    tls = spec.serving.tls
    if tls is not None and tls.client_ca is not None:
        raise InvalidRequest(
            "NOT_IN_PODS",
            "got authorities of client certificates; expected none: the gateway ends TLS, and "
            "routers behind it know callers by keys",
            field="serving.tls.client_ca",
        )
    listens = {
        "host": "0.0.0.0",
        "port": EDGE_PORT,
        "auth": AuthSpec(keys=f"{CONFIG_FOLDER}/keys/{KEYS_FILE}"),
        "tls": None,
        "plaintext": True,
        "metrics": MetricsSpec(host="0.0.0.0", port=METRICS_PORT),
        "drain_s": float(drain_s(spec)),
    }
    placed = in_pools(spec)
    changed = placed.model_copy(update={"serving": placed.serving.model_copy(update=listens)})
    return parse_mapping(changed.to_mapping(), name="the blend file in pods")


def drain_s(spec: ClusterSpec) -> int:
    """Long enough for the longest reply that a router lets anybody ask for."""
    return math.ceil(max(spec.serving.drain_s, spec.limits.max_deadline_s))


def needs_volume(spec: ClusterSpec) -> bool:
    """Whether any model or gate comes from outside the image, or is made first."""
    models = (*spec.members.values(), *spec.rankers.values())
    return any(not is_in_image(model) for model in models) or bool(_gate_files(spec))


def downloads(spec: ClusterSpec) -> bool:
    """Whether any model comes from a hub."""
    models = (*spec.members.values(), *spec.rankers.values())
    return any(it.kind is ModelKind.HUB for model in models for it in model.references)


def _check_files(spec: ClusterSpec) -> None:
    folders = {
        (f"{kind}.{name}.model", reference.name)
        for kind, named in (("members", spec.members), ("rankers", spec.rankers))
        for name, model in named.items()
        for reference in model.references
        if reference.kind is ModelKind.FOLDER
    }
    for field, path in sorted(folders | set(_gate_files(spec).items())):
        if not PurePosixPath(path).is_relative_to(MODELS_FOLDER):
            raise InvalidRequest(
                "NOT_IN_PODS",
                f"got {path!r}; expected a path below {MODELS_FOLDER}, where pods mount the volume "
                "of models",
                field=field,
            )


def _gate_files(spec: ClusterSpec) -> dict[str, str]:
    return {
        f"blends.{name}.gate.file": blend.gate.file
        for name, blend in spec.blends.items()
        if isinstance(blend, RouteSpec) and isinstance(blend.gate, LearnedGate)
    }
