"""What a spec needs of one machine: a free port, room for its processes."""

from __future__ import annotations

import math
import socket

from cluster.errors import InvalidRequest
from cluster.spec import ClusterSpec


def check_port_is_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on; routers share theirs, so Linux would not object."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise InvalidRequest(
                "PORT_TAKEN",
                f"port {port} of {host} cannot be used: {error.strerror}; "
                "choose another with --port, or stop what listens there",
                field="serving.port",
            ) from None


def num_cpus_needed(spec: ClusterSpec) -> int:
    """What all replicas together ask for: on one machine placement must never be what waits.

    And at least one per process: Ray starts so many ahead of need, and no more at one time.
    """
    models = (*spec.members.values(), *spec.rankers.values())
    asked = math.fsum(model.resources.num_cpus * model.max_replicas for model in models)
    routers = spec.serving.routers
    num_replicas = sum(max(1, model.min_replicas) for model in models) + routers.min
    return max(math.ceil(asked + routers.resources.num_cpus * routers.max - 1e-9), num_replicas + 1)
