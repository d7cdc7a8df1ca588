"""Where servers are, and what a call to them carries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a proxy between a laptop and itself helps nobody
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 25_000),  # a server that has vanished is noticed; ours allow 20 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),  # how long to wait is decided above channels
    ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name, for how long one try may last
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True)
class Servers:
    """One server or several that serve the same, tried in turn; who calls; how it is secured."""

    addresses: tuple[str, ...]
    api_key: str | None = field(default=None, repr=False)
    credentials: grpc.ChannelCredentials | None = None  # None: in the clear

    @classmethod
    def at(
        cls,
        server: str | Sequence[str],
        api_key: str | None,
        credentials: grpc.ChannelCredentials | None,
    ) -> Servers:
        """Each address is host:port, or a target of gRPC's such as dns:///name:port."""
        addresses = (server,) if isinstance(server, str) else tuple(server)
        if not addresses:
            raise ValueError("got no server; expected one address or more")
        return cls(addresses, api_key, credentials)

    @property
    def metadata(self) -> Metadata:
        """What goes with each call."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


class Deadline:
    """When a caller's time is up, over all calls that one answer takes."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def left_s(self) -> float | None:
        """What is left, at least 0; None: all the time there is."""
        return None if self._end_s is None else max(0.0, self._end_s - time.monotonic())
