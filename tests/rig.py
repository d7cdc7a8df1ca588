"""The whole path without Ray: models, replicas, exchanges over gRPC, router, public edge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from cluster.members.build import build_replica
from cluster.members.direct import DirectMember
from cluster.members.exchange import ExchangePool
from cluster.members.replica import Replica
from cluster.members.server import MemberServer
from cluster.rankers.base import Measures, RankRequest
from cluster.rankers.model import RankerModel
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.spec import ClusterSpec, MemberSpec, parse_spec
from cuvee.v1 import blend_pb2_grpc, generation_pb2_grpc

SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 32MiB}
  kjv: {model: embedded:tiny-kjv, dtype: float32, kv_memory: 32MiB}
  bytes: {model: embedded:tiny-bytes, dtype: float32, kv_memory: 32MiB}
blends:
  tokens: {method: mixture, span: token, members: {austen: 0.6, kjv: 0.4}}
  replies: {method: mixture, span: response, members: {austen: 0.5, kjv: 0.5}}
  mixed: {method: mixture, members: {austen: 0.5, bytes: 0.5}}
limits: {max_prompt_tokens: 900, max_new_tokens: 400, lease_timeout_s: 2}
"""


class DirectRanker:
    """A ranker in this process."""

    def __init__(self, model: RankerModel) -> None:
        self.model = model

    async def ready(self) -> None:
        """It is."""

    async def measure(self, request: RankRequest) -> Measures:
        (found,) = await asyncio.to_thread(self.model.measure, [request])
        return found


@dataclass
class Rig:
    """A running cluster in one process."""

    spec: ClusterSpec
    servers: dict[str, list[MemberServer]]
    members: dict[str, DirectMember]
    rankers: dict[str, DirectRanker]
    exchanges: ExchangePool
    router: Router
    edge: Edge
    channel: grpc.aio.Channel

    @property
    def generation(self) -> generation_pb2_grpc.GenerationServiceAsyncStub:
        return generation_pb2_grpc.GenerationServiceStub(self.channel)  # type: ignore[return-value]

    @property
    def blends(self) -> blend_pb2_grpc.BlendServiceAsyncStub:
        return blend_pb2_grpc.BlendServiceStub(self.channel)  # type: ignore[return-value]

    @property
    def all_servers(self) -> list[MemberServer]:
        return [server for servers in self.servers.values() for server in servers]

    def num_held(self) -> tuple[int, int]:
        """Leases and sequences that are held anywhere."""
        servers = self.all_servers
        return sum(len(s.leases) for s in servers), sum(s.replica.num_sequences for s in servers)


@asynccontextmanager
async def running(
    text: str = SPEC,
    num_replicas: int = 1,
    build: Callable[[str, MemberSpec], Awaitable[Replica]] = build_replica,
) -> AsyncIterator[Rig]:
    """Start everything on loopback; stop everything."""
    spec = parse_spec(text)
    rankers = {name: DirectRanker(RankerModel(ranker)) for name, ranker in spec.rankers.items()}
    exchanges = ExchangePool()
    servers: dict[str, list[MemberServer]] = {}
    for name, member in spec.members.items():
        servers[name] = [MemberServer(await build(name, member)) for _ in range(num_replicas)]
        for server in servers[name]:
            await server.start("127.0.0.1")
    members = {name: DirectMember(name, group, exchanges) for name, group in servers.items()}
    router = Router(spec, members, rankers)
    edge = Edge(router)
    await edge.start("127.0.0.1", 0)
    await router.learn_members()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}")
    try:
        yield Rig(spec, servers, members, rankers, exchanges, router, edge, channel)
    finally:
        await channel.close()
        await edge.stop(0)
        await exchanges.close()
        for group in servers.values():
            for server in group:
                await server.stop()
                server.replica.stop()
