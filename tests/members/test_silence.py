"""A peer that says nothing, not even a ping, is dead after the limit; a live one never is."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from cluster.errors import ReplicaLost
from cluster.members import exchange, silence, wire
from cluster.members.base import Draw, RunEnd, Step
from cluster.members.exchange import ExchangePool
from cluster.members.guard import LEASE_ID_KEY, LEASE_SECRET_KEY
from cluster.members.leases import LeaseGrant
from cuvee.v1 import member_pb2 as pb
from cuvee.v1 import member_pb2_grpc
from tests.members.factories import run, seated, start_of
from tests.members.line import GrantedLease, served

LIMIT_S = 0.5


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_LIMIT_S", LIMIT_S)
    monkeypatch.setattr(silence, "PING_INTERVAL_S", LIMIT_S / 5)
    monkeypatch.setattr(exchange, "SILENCE_LIMIT_S", LIMIT_S)  # for its words


@asynccontextmanager
async def mute_port() -> AsyncIterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class Mute(member_pb2_grpc.MemberServiceServicer):
    """Takes every message and never answers."""

    async def Exchange(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[pb.ExchangeResponse]:
        async for _ in request_iterator:
            pass
        yield pb.ExchangeResponse()


@asynccontextmanager
async def mute_server() -> AsyncIterator[str]:
    """Speaks gRPC and says nothing."""
    mute = grpc.aio.server()
    member_pb2_grpc.add_MemberServiceServicer_to_server(Mute(), mute)
    port = mute.add_insecure_port("127.0.0.1:0")
    await mute.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await mute.stop(None)


@pytest.mark.parametrize("peer", [mute_port, mute_server])
async def test_a_silent_replica_is_noticed(peer: Any) -> None:
    pool = ExchangePool()
    async with served() as line, peer() as address:
        grant = LeaseGrant(address, "lease", b"secret", line.server.replica.info)
        began = asyncio.get_running_loop().time()
        with pytest.raises(ReplicaLost, match=r"silent for 0\.5 s"):
            async with seated(GrantedLease(pool, grant), start_of()):
                pass
        assert asyncio.get_running_loop().time() - began < 10 * LIMIT_S
        await pool.close()


async def test_who_falls_silent_is_reported_and_who_leaves_is_not() -> None:
    silent: list[str] = []
    async with served() as line, mute_server() as address:
        pool = ExchangePool(on_silence=silent.append)
        info = line.server.replica.info
        grant = LeaseGrant(address, "lease", b"secret", info)
        with pytest.raises(ReplicaLost, match="silent"):
            async with seated(GrantedLease(pool, grant), start_of()):
                pass
        assert silent == [address]
        held = line.server.lease()
        async with seated(GrantedLease(pool, await anext(held)), start_of()) as seat:
            await line.server.stop()
            with pytest.raises(ReplicaLost):
                await run(seat, Step(0, Draw(0, 3)))
        assert silent == [address]
        await held.aclose()
        await pool.close()


async def test_a_silent_router_loses_its_leases_and_sequences() -> None:
    async with served() as line, grpc.aio.insecure_channel(line.server.address) as channel:
        held = line.server.lease()
        grant = await anext(held)
        call: Any = member_pb2_grpc.MemberServiceStub(channel).Exchange(
            metadata=((LEASE_ID_KEY, grant.lease_id), (LEASE_SECRET_KEY, grant.secret))
        )
        opening = wire.start_to_proto(start_of(), 1, grant.lease_id, grant.secret)
        await call.write(pb.ExchangeRequest(opens=[opening]))
        assert (await call.read()).opened[0].sequence == 1
        assert line.num_held == (1, 1)
        await line.freed()
        with suppress(StopAsyncIteration):
            await anext(held)  # the lease's call ends by itself
            raise AssertionError("the lease goes on")


async def test_who_stood_still_himself_blames_nobody() -> None:
    async with served() as line, seated(await line.lease(), start_of()) as seat:
        for _ in range(2):
            time.sleep(2 * LIMIT_S)  # noqa: ASYNC251 (the loop of both ends stands still)
            await asyncio.sleep(LIMIT_S / 2)
        assert (await run(seat, Step(0, Draw(0, 3)))).end is RunEnd.COMPLETE


async def test_a_stream_without_work_lives_on() -> None:
    async with served() as line, seated(await line.lease(), start_of()) as seat:
        await asyncio.sleep(4 * LIMIT_S)
        assert (await run(seat, Step(0, Draw(0, 3)))).end is RunEnd.COMPLETE
        assert line.pool.counts.pings_sent > 5


async def test_exchanges_of_replicas_that_are_gone_are_forgotten() -> None:
    pool = ExchangePool()
    for _ in range(3):
        async with served() as line:
            held = line.server.lease()
            async with seated(GrantedLease(pool, await anext(held)), start_of()) as seat:
                await line.server.stop()
                with pytest.raises(ReplicaLost):
                    await run(seat, Step(0, Draw(0, 3)))
            await held.aclose()
            while not all(exchange.has_ended for exchange in pool._exchanges.values()):
                await asyncio.sleep(0.005)
        assert len(pool._exchanges) == 1
    await pool.close()
