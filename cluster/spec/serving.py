"""Where the edge listens, to whom, and how what they say is kept from others."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from cluster.access.hosts import is_address, is_loopback
from cluster.spec.frozen import Frozen
from cluster.spec.scaling import Routers, RoutersSpec
from cluster.spec.values import Bytes, FilePath, Name, refuse


class AuthSpec(Frozen):
    """Who may call."""

    keys: FilePath = Field(description="the key file that `cuvee keys new` writes")


class TlsSpec(Frozen):
    """The certificate that the edge shows, and the one that clients must have."""

    certificate: FilePath = Field(description="a PEM file: the certificate, then its chain")
    key: FilePath = Field(description="a PEM file with the certificate's private key")
    client_ca: FilePath | None = Field(
        default=None,
        description="a PEM file of the authorities whose certificates clients must have",
    )


class MetricsSpec(Frozen):
    """Where each router tells its numbers to Prometheus; guarded like the edge."""

    host: str = Field(default="127.0.0.1", description="an IP address such as 127.0.0.1")
    port: int = Field(
        default=9464, ge=0, le=65535, description="a port between 0 and 65535 (0: any free one)"
    )


class ServingSpec(Frozen):
    """Where the edge listens."""

    auth: AuthSpec | None = Field(
        default=None, description="a mapping such as {keys: keys.yaml}, or nothing"
    )
    tls: TlsSpec | None = Field(
        default=None,
        description="a mapping such as {certificate: tls.crt, key: tls.key}, or nothing",
    )
    plaintext: bool = Field(
        default=False, description="true where what stands in front ends TLS, or false"
    )
    host: str = Field(default="127.0.0.1", description="an IP address such as 127.0.0.1")
    port: int = Field(
        default=9000, ge=0, le=65535, description="a port between 0 and 65535 (0: any free one)"
    )
    metrics: MetricsSpec | None = Field(
        default=None,
        description="a mapping such as {port: 9464}, or nothing",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that running replies may go on when a router is stopped, at least 0",
    )
    max_request_bytes: Bytes = Field(
        default=4 << 20, alias="max_request", description="a size such as 4MiB, at least 64KiB"
    )
    routers: Routers = Field(
        default=RoutersSpec(),
        description="router replicas: a whole number of at least 1, or a mapping such as "
        "{min: 1, max: 4, target_generations: 64}",
    )
    default_blend: Name | None = Field(default=None, description="the name of a blend of this file")

    @field_validator("plaintext")
    @classmethod
    def _not_both(cls, plaintext: bool, info: ValidationInfo) -> bool:
        if plaintext and info.data.get("tls") is not None:
            raise refuse("expected either tls or plaintext: true, not both")
        return plaintext

    @field_validator("metrics")
    @classmethod
    def _told_to_known_callers(
        cls, metrics: MetricsSpec | None, info: ValidationInfo
    ) -> MetricsSpec | None:
        """By the rules of the edge, but for client certificates: they have no scope metrics."""
        if metrics is None or is_loopback(metrics.host):
            return metrics
        if not is_address(metrics.host):
            raise refuse("expected an IP address such as 127.0.0.1 as host")
        if "auth" in info.data and info.data["auth"] is None:
            raise refuse(
                "expected a loopback address such as 127.0.0.1 as host; any other wants keys with "
                "the scope metrics: auth: {keys: …}"
            )
        if "plaintext" in info.data and not info.data["plaintext"]:
            raise refuse(
                "expected plaintext: true beside a host that is not loopback: metrics have no TLS"
            )
        return metrics

    @field_validator("host")
    @classmethod
    def _guarded(cls, host: str, info: ValidationInfo) -> str:
        """Whoever reaches a port may use it, and on a network anybody may listen in."""
        if not is_address(host):
            raise refuse("expected an IP address such as 127.0.0.1, or localhost")
        if is_loopback(host) or not {"auth", "tls", "plaintext"} <= info.data.keys():
            return host
        auth, tls = info.data["auth"], info.data["tls"]
        if auth is None and (tls is None or tls.client_ca is None):
            raise refuse(
                "expected a loopback address such as 127.0.0.1; any other wants to know who calls: "
                "auth: {keys: …}, or tls with a client_ca"
            )
        if tls is None and not info.data["plaintext"]:
            raise refuse(
                "expected tls: {certificate: …, key: …} beside an address that is not loopback, "
                "since keys in clear text are no secret; or plaintext: true where what stands in "
                "front ends TLS"
            )
        return host
