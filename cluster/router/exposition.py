"""Where Prometheus reads a router's metrics: one page over HTTP, for callers with the right key.

A server for one path is a few lines; a framework would bring everything that it can do besides to a
port that strangers may reach.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cluster.access.caller import Scope
from cluster.access.keyring import Keyring
from cluster.access.keys import bearer_key
from cluster.errors import Unauthenticated

logger = logging.getLogger(__name__)

PATH = "/metrics"

_MAX_HEAD_BYTES = 8192
_TIMEOUT_S = 10.0  # for a whole exchange
_MAX_CLIENTS = 16
_RETRY_S = 10.0


class _Snapshot(Collector):
    """All metrics as they are now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = list(registry.collect())

    def collect(self) -> Iterable[Metric]:
        return self._families


class MetricsEndpoint:
    """Answers `GET /metrics`. With a keyring, a key with the scope metrics is wanted."""

    def __init__(self, registry: CollectorRegistry, keyring: Keyring | None) -> None:
        self.port = 0  # 0: not listening
        self._registry = registry
        self._keyring = keyring
        self._num_clients = 0
        self._server: asyncio.Server | None = None
        self._binding: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; where another router of this machine does, as soon as that one is gone."""
        try:
            await self._listen(host, port)
        except OSError as error:
            logger.warning("no metrics at %s:%d for now: %s", host, port, error.strerror)
            self._binding = asyncio.create_task(self._listen_later(host, port))

    async def stop(self) -> None:
        """Close the port."""
        if self._binding is not None:
            self._binding.cancel()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _listen(self, host: str, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, host, port, limit=_MAX_HEAD_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _listen_later(self, host: str, port: int) -> None:
        while self._server is None:
            await asyncio.sleep(_RETRY_S)
            with suppress(OSError):
                await self._listen(host, port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_clients += 1
        try:
            if self._num_clients <= _MAX_CLIENTS:
                async with asyncio.timeout(_TIMEOUT_S):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it was is gone, or not worth an answer
        finally:
            self._num_clients -= 1
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        line, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = line.partition(" ")
        if rest.partition(" ")[0].partition("?")[0] != PATH:
            return _response(HTTPStatus.NOT_FOUND)
        if method != "GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET\r\n")
        if refused := self._refusal(fields):
            return refused
        # Read here, where nothing changes meanwhile; written elsewhere, since that takes longer.
        page = await asyncio.to_thread(generate_latest, _Snapshot(self._registry))
        return _response(HTTPStatus.OK, f"Content-Type: {CONTENT_TYPE_LATEST}\r\n", page)

    def _refusal(self, fields: list[str]) -> bytes | None:
        """Of a caller who may not read; nothing says whether the key or its id is wrong."""
        if self._keyring is None:
            return None
        named = (field.partition(":") for field in fields)
        given = [value.strip() for name, _, value in named if name.lower() == "authorization"]
        try:
            caller = self._keyring.caller_of(bearer_key(given))
        except Unauthenticated:
            return _response(HTTPStatus.UNAUTHORIZED, "WWW-Authenticate: Bearer\r\n")
        return None if Scope.METRICS in caller.scopes else _response(HTTPStatus.FORBIDDEN)


def _response(status: HTTPStatus, headers: str = "", body: bytes = b"") -> bytes:
    body = body or f"{status.phrase}\n".encode()
    lines = f"HTTP/1.1 {status.value} {status.phrase}\r\n{headers}Content-Length: {len(body)}\r\n"
    return f"{lines}Connection: close\r\n\r\n".encode() + body
