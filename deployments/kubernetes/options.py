"""What objects need to know that is no business of a blend file: where they run."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from cluster import __version__
from cluster.errors import InvalidRequest

Object = dict[str, Any]  # one Kubernetes object, as YAML and JSON hold it

RAY_VERSION = "2.60.0"  # of the image; a test compares it with constraints.txt
EDGE_PORT = 9000  # of routers, inside their pods
METRICS_PORT = 9464  # of routers, OpenTelemetry's usual one
EXCHANGE_PORT = 9100  # of members' first replica in a pod
CONFIG_FOLDER = "/etc/cuvee"
MODELS_FOLDER = "/models"

PARTS = {
    "monitoring": "monitors, rules and a dashboard for the Prometheus operator and Grafana",
    "gateway": "a Gateway that ends TLS, and a GRPCRoute",
    "certificate": "the gateway's certificate, by cert-manager",
    "redis": "the head's state in Redis, so that it survives the head",
}

_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_MAX_NAME_LENGTH = 47  # of a RayService
_IMAGE = re.compile(r"[a-z0-9][\w./:-]*?(?::(?P<tag>[\w][\w.-]*))?(?:@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How one installation is called, where its image is, and which optional parts it has."""

    name: str = "cuvee"  # of the RayService; everything else is called after it
    namespace: str = "cuvee"
    image: str = f"cuvee:{__version__}"
    parts: frozenset[str] = frozenset()  # of PARTS
    host: str = "cuvee.example.com"  # that clients outside call
    gateway_class: str = "eg"
    issuer: str = "letsencrypt"  # a ClusterIssuer of cert-manager
    redis_address: str = "redis:6379"
    api_server: str = "0.0.0.0/0"  # whence the autoscaler reaches Kubernetes; narrow it where known
    storage: str = "100Gi"  # for models, where any come from a hub or a folder
    node_idle_s: int = 300  # after which an empty pod goes

    def __post_init__(self) -> None:
        """Raises InvalidRequest with the option's name."""
        for option in ("name", "namespace"):
            given = getattr(self, option)
            if len(given) > _MAX_NAME_LENGTH or not _NAME.fullmatch(given):
                raise _refused(
                    option,
                    given,
                    f"a DNS label of at most {_MAX_NAME_LENGTH} characters: a-z first, then a-z, "
                    "0-9 and hyphens, no hyphen last",
                )
        image = _IMAGE.fullmatch(self.image)
        is_fixed = "@sha256:" in self.image or (image and image["tag"] not in (None, "latest"))
        if not image or not is_fixed:
            raise _refused("image", self.image, "an image with a tag other than latest or a digest")
        for part in sorted(self.parts - PARTS.keys()):
            raise _refused("with", part, f"one of {', '.join(PARTS)}")
        if not self.redis_address.rpartition(":")[2].isdecimal():
            raise _refused("redis-address", self.redis_address, "an address such as redis:6379")
        try:
            ipaddress.ip_network(self.api_server)
        except ValueError:
            raise _refused("api-server", self.api_server, "a network such as 10.0.0.1/32") from None

    def has(self, part: str) -> bool:
        """Whether an optional part is wanted."""
        return part in self.parts

    def labels(self, component: str = "") -> dict[str, str]:
        """What everything of this installation is labelled with."""
        labels = {"app.kubernetes.io/name": "cuvee", "app.kubernetes.io/instance": self.name}
        return labels | ({"app.kubernetes.io/component": component} if component else {})

    def metadata(self, suffix: str = "", *, component: str = "") -> Object:
        """An object's name, namespace and labels."""
        name = f"{self.name}-{suffix}" if suffix else self.name
        return {"name": name, "namespace": self.namespace, "labels": self.labels(component)}


def _refused(option: str, given: str, expected: str) -> InvalidRequest:
    return InvalidRequest("INVALID_OPTION", f"got {given!r}; expected {expected}", field=option)
