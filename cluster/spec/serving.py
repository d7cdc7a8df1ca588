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
