"""The public edge: our own grpc.aio server with health, reflection, deadlines and rich errors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.access.caller import Scope
from cluster.access.certificates import Certificates
from cluster.access.hosts import address_of
from cluster.access.keyring import Keyring
from cluster.errors import DeadlineExceeded
from cluster.members.server import MAX_MESSAGE_BYTES
from cluster.router import convert, convert_answers
from cluster.router.answers import Update
from cluster.router.core import Router
from cluster.router.exposition import MetricsEndpoint
from cluster.router.guard import Guard, require
from cluster.router.pacing import paced
from cluster.router.requests import GenerationRequest
from cluster.router.state import AdminServicer
from cluster.router.status import ErrorInterceptor
from cluster.spec import ServingSpec
from cuvee.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    blend_pb2,
    blend_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
)

if TYPE_CHECKING:  # at run time the class takes no arguments
    _Context = grpc.aio.ServicerContext[Any, Any]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_HEALTH_INTERVAL_S = 0.5

_CONNECTION_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 1),  # router replicas on one node share the port
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.per_message_decompression", 0),  # a small message could become a large one
    ("grpc.max_concurrent_streams", 1000),  # on one connection; its others wait at the client
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),  # a client that has vanished holds nothing for long
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),  # who pings more often is cut off
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_connection_age_ms", 3_600_000),  # so long a certificate that has ended may be used
)


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """cuvee.v1.GenerationService over a router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: _Context
    ) -> generation_pb2.GenerateResponse:
        """Write one reply and return it whole."""
        wanted = convert.generation_from_proto(request)
        response = generation_pb2.GenerateResponse(request_id=uuid.uuid4().hex)
        async with self._replying(wanted, context) as updates:
            pieces: list[str] = []
            async for update in updates:
                pieces.append(update.text)
                piece = convert_answers.stream_to_proto(update, "", wanted.output)
                response.tokens.extend(piece.tokens)
                response.outcome.MergeFrom(piece.outcome)
        response.text = "".join(pieces)
        return response

    async def StreamGenerate(  # noqa: N802
        self, request: generation_pb2.StreamGenerateRequest, context: _Context
    ) -> AsyncIterator[generation_pb2.StreamGenerateResponse]:
        """Write one reply and stream it."""
        wanted = convert.generation_from_proto(request)
        request_id = uuid.uuid4().hex
        async with self._replying(wanted, context) as updates:
            told = (it async for it in updates if _has_news(it, wanted.output.attribution))
            async with aclosing(paced(told, lambda: self._router.num_running)) as pieces:
                async for piece in pieces:
                    yield convert_answers.stream_to_proto(piece, request_id, wanted.output)

    async def Score(  # noqa: N802
        self, request: generation_pb2.ScoreRequest, context: _Context
    ) -> generation_pb2.ScoreResponse:
        """Measure a continuation."""
        wanted = convert.score_from_proto(request)
        async with self._deadline(context) as limit_s:
            return convert_answers.score_to_proto(await self._router.score(wanted, limit_s))

    async def CountTokens(  # noqa: N802
        self, request: generation_pb2.CountTokensRequest, context: _Context
    ) -> generation_pb2.CountTokensResponse:
        """Count an input's tokens."""
        async with self._deadline(context):
            counts = await self._router.count_tokens(
                request.blend, convert.prompt_from_proto(request)
            )
        members = [
            generation_pb2.MemberTokenCount(member=name, num_tokens=num, max_context=most)
            for name, (num, most) in counts.items()
        ]
        return generation_pb2.CountTokensResponse(members=members)

    @asynccontextmanager
    async def _replying(
        self, wanted: GenerationRequest, context: _Context
    ) -> AsyncIterator[AsyncGenerator[Update, None]]:
        async with (
            self._deadline(context) as limit_s,
            aclosing(self._router.generate(wanted, limit_s)) as updates,
        ):
            yield updates

    @asynccontextmanager
    async def _deadline(self, context: _Context) -> AsyncIterator[float]:
        """The seconds to the caller's deadline, or to the server's own if that is nearer."""
        limit = self._router.spec.limits.max_deadline_s
        remaining = context.time_remaining()
        limit = limit if remaining is None else min(limit, remaining)
        try:
            async with asyncio.timeout(limit):
                yield limit
        except TimeoutError:
            raise DeadlineExceeded(
                "DEADLINE_EXCEEDED", f"the reply was not finished within {limit:.3g} s"
            ) from None


class BlendServicer(blend_pb2_grpc.BlendServiceServicer):
    """cuvee.v1.BlendService over a router."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def ListBlends(  # noqa: N802
        self, request: blend_pb2.ListBlendsRequest, context: _Context
    ) -> blend_pb2.ListBlendsResponse:
        """List all blends that are ready."""
        return blend_pb2.ListBlendsResponse(
            blends=[self._describe(name) for name in self._router.ready_blends],
            default_blend=self._router.spec.default_blend,
        )

    async def GetBlend(  # noqa: N802
        self, request: blend_pb2.GetBlendRequest, context: _Context
    ) -> blend_pb2.GetBlendResponse:
        """Describe one blend."""
        return blend_pb2.GetBlendResponse(blend=self._describe(request.name))

    def _describe(self, name: str) -> blend_pb2.Blend:
        max_tokens = self._router.spec.limits.max_new_tokens
        return convert_answers.blend_to_proto(self._router.blend(name), max_tokens)


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: anybody may ask for the whole, since probes have no key."""

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Tell of a blend only who may list blends."""
        if request.service:
            require(Scope.GENERATE)
        return await super().Check(request, context)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: _Context
    ) -> health_pb2.HealthListResponse:
        """Tell of the whole and of every blend."""
        answer = health_pb2.HealthCheckResponse
        statuses = {name: answer(status=status) for name, status in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)


class Edge:
    """The server: starts listening at once, serves each blend as soon as its members are known."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.port = 0
        self._health = _Health()
        self._told_of: set[str] = set()  # blends, those that are gone among them
        serving = router.spec.serving
        keyring = Keyring(serving.auth.keys) if serving.auth else None
        self.metrics = MetricsEndpoint(router.metrics.registry, keyring)
        self._certificates = Certificates(serving.tls) if serving.tls else None
        self._server = grpc.aio.server(
            interceptors=(ErrorInterceptor(_guard(serving, keyring).enter),),
            options=[
                *_CONNECTION_OPTIONS,
                ("grpc.max_receive_message_length", serving.max_request_bytes),
            ],
        )
        add_services(self._server, router, self._health)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> None:
        """Listen, and begin to learn the members."""
        await self._set_health()
        address = address_of(host, port)
        if self._certificates is None:
            self.port = self._server.add_insecure_port(address)
        else:
            credentials = self._certificates.to_credentials()
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        if (metrics := self.router.spec.serving.metrics) is not None:
            await self.metrics.start(metrics.host, metrics.port)
        self._tasks = [
            asyncio.create_task(self.router.learn_members()),
            asyncio.create_task(self._watch_health()),
        ]

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within the grace, then close."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        await self.metrics.stop()

    async def _watch_health(self) -> None:
        while True:
            await self._set_health()
            await asyncio.sleep(_HEALTH_INTERVAL_S)

    async def _set_health(self) -> None:
        """Per blend by its name; overall once every blend is decided."""
        ready = self.router.ready_blends
        self._told_of |= self.router.spec.blends.keys()
        for name in self._told_of:
            await self._health.set(name, _SERVING if name in ready else _NOT_SERVING)
        is_whole = self.router.knows_all_members
        await self._health.set("", _SERVING if is_whole else _NOT_SERVING)


def add_services(server: grpc.aio.Server, router: Router, health_servicer: _Health) -> None:
    """All that the edge answers; `cluster.router.guard` has the scope of each method."""
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(router), server)
    blend_pb2_grpc.add_BlendServiceServicer_to_server(BlendServicer(router), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(router), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        (
            generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
            blend_pb2.DESCRIPTOR.services_by_name["BlendService"].full_name,
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        ),
        server,
    )


def _guard(serving: ServingSpec, keyring: Keyring | None) -> Guard:
    by_certificate = serving.tls is not None and serving.tls.client_ca is not None
    return Guard(keyring, by_certificate=by_certificate)


def _has_news(update: Update, attribution: bool) -> bool:
    told = update.text or update.start or update.outcome or update.notices
    return bool(told or (attribution and update.tokens))
