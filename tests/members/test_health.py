"""What probes learn of a replica, and where they find it."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.members.server import MemberServer
from tests.members.line import served

ASK = health_pb2.HealthCheckRequest
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_probe_needs_no_lease_and_learns_one_bit() -> None:
    async with served() as line, grpc.aio.insecure_channel(line.server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(ASK())).status == SERVING
        for call in (stub.Check(ASK(service="austen")), stub.Watch(ASK()).read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            code = refused.value.code()
            assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAUTHENTICATED)
        line.server.replica.engine.stop()
        assert (await stub.Check(ASK())).status == NOT_SERVING


async def test_replicas_of_one_host_take_the_ports_after_the_first() -> None:
    async with served() as line:
        host, _, taken = line.server.address.rpartition(":")
        other = MemberServer(line.server.replica)
        await other.start(host, int(taken))
        assert int(other.address.rpartition(":")[2]) > int(taken)
        await other.stop()
