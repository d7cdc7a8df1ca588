"""The stream between a router and a replica: who may use it, how it ends, what it carries."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest

from cluster.errors import InternalError, ReplicaLost
from cluster.members import wire
from cluster.members.base import Draw, Event, Failed, RunEnd, Step, StepEvent
from cluster.members.exchange import Exchange
from cluster.members.leases import LeaseGrant
from cluster.members.seat import Seat
from cluster.members.server import LEASE_ID_KEY, LEASE_SECRET_KEY
from cuvee.v1 import member_pb2 as pb
from cuvee.v1 import member_pb2_grpc
from tests.members.factories import engine_of, run, seated, start_of
from tests.members.line import GrantedLease, begun, served

SHORT = Step(0, Draw(0, 6))


async def test_a_sequence_says_the_same_near_and_far() -> None:
    async with served() as line:
        async with seated(line.server.replica, start_of()) as near:
            expected = await run(near, SHORT)
        async with seated(await line.lease(), start_of()) as far:
            said = await run(far, SHORT)
            assert (said.tokens, said.end) == (expected.tokens, RunEnd.COMPLETE)
            assert far.usage.prompt_tokens == near.usage.prompt_tokens


FORGERIES = {
    "a forged secret": {"secret": b"\x00" * 32},
    "no secret": {"secret": b""},
    "an unknown lease": {"lease_id": "0" * 16},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_stream_needs_the_id_and_secret_of_a_live_lease(forgery: dict[str, Any]) -> None:
    async with served() as line:
        held = line.server.lease()
        grant = await anext(held)
        with pytest.raises(ReplicaLost, match="UNAUTHENTICATED"):
            async with seated(GrantedLease(line.pool, replace(grant, **forgery)), start_of()):
                pass
        assert line.num_held == (1, 0)
        async with seated(GrantedLease(line.pool, grant), start_of()) as seat:
            assert (await run(seat, SHORT)).end is RunEnd.COMPLETE
        await held.aclose()


async def test_a_stream_needs_a_lease_that_has_not_ended() -> None:
    async with served() as line:
        held = line.server.lease()
        grant = await anext(held)
        await held.aclose()
        with pytest.raises(ReplicaLost, match="UNAUTHENTICATED"):
            async with seated(GrantedLease(line.pool, grant), start_of()):
                pass


@pytest.mark.parametrize("metadata", [(), ((LEASE_ID_KEY, "x"),), ((LEASE_SECRET_KEY, b"x"),)])
async def test_a_stream_without_credentials_is_refused(metadata: Any) -> None:
    async with served() as line, grpc.aio.insecure_channel(line.server.address) as channel:
        call = member_pb2_grpc.MemberServiceStub(channel).Exchange(metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("forgery", [{}, *FORGERIES.values()], ids=["a live lease", *FORGERIES])
async def test_a_vocabulary_is_told_to_holders_of_a_live_lease_alone(
    forgery: dict[str, Any],
) -> None:
    async with served() as line:
        held = line.server.lease()
        grant = replace(await anext(held), **forgery)
        transport = GrantedLease(line.pool, grant).transport
        if forgery:
            calls = (transport.tokens() for _ in range(20))  # some fail, some with their channel
            for error in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(error, ReplicaLost)
                assert "UNAUTHENTICATED" in error.message
        else:
            tokens = await transport.tokens()
            text = line.server.replica.text
            assert tuple(tokens.bytes) == tuple(text.token_bytes)
            assert tokens.end_ids == set(text.end_ids)
        await held.aclose()


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
async def test_every_sequence_needs_a_live_lease_of_its_own(forgery: dict[str, Any]) -> None:
    async with served() as line, seated(await line.lease(), start_of()) as honest:
        held = line.server.lease()
        forged = replace(await anext(held), **forgery)
        with pytest.raises(ReplicaLost) as caught:
            async with seated(GrantedLease(line.pool, forged), start_of()):
                pass
        assert caught.value.reason == "LEASE_NOT_LIVE"
        assert (await run(honest, SHORT)).end is RunEnd.COMPLETE  # the stream goes on
        await held.aclose()


async def test_a_lease_that_the_replica_ends_fails_the_step_under_way() -> None:
    async with served() as line:
        held = line.server.lease()
        async with (
            seated(await line.lease(), start_of()) as other,
            seated(GrantedLease(line.pool, await anext(held)), start_of()) as seat,
        ):
            speaking = await begun(seat)
            await held.aclose()
            error = await speaking
            assert isinstance(error, ReplicaLost)
            assert error.reason == "LEASE_NOT_LIVE"
            assert (await run(other, SHORT)).end is RunEnd.COMPLETE


async def test_a_lease_that_the_replica_ended_fails_the_next_step() -> None:
    async with served() as line:
        held = line.server.lease()
        async with seated(GrantedLease(line.pool, await anext(held)), start_of()) as seat:
            assert (await run(seat, SHORT)).end is RunEnd.COMPLETE
            await held.aclose()
            with pytest.raises(ReplicaLost) as caught:
                await run(seat, SHORT)
            assert caught.value.reason == "LEASE_NOT_LIVE"


async def test_what_a_replica_does_not_understand_fails_one_sequence_and_not_the_stream() -> None:
    news: asyncio.Queue[Event] = asyncio.Queue()
    async with served() as line:
        lease = await line.lease()
        async with seated(lease, start_of()) as seat:
            exchange = line.pool.exchange(lease.transport.grant)
            grant = lease.transport.grant
            odd = wire.start_to_proto(start_of(), 90, grant.lease_id, grant.secret)
            odd.form = pb.EXCHANGE_FORM_UNSPECIFIED
            exchange._emits[90] = exchange._emits[91] = news.put_nowait
            exchange.send(lambda request: request.opens.append(odd))
            exchange.send(lambda request: request.steps.append(wire.step_to_proto(SHORT, 91)))
            failures = [await news.get(), await news.get()]
            assert [type(f.error) for f in failures if isinstance(f, Failed)] == [
                InternalError,
                ReplicaLost,
            ]
            assert (await run(seat, SHORT)).end is RunEnd.COMPLETE


async def test_cancels_and_closes_take_effect_on_the_other_side() -> None:
    news: asyncio.Queue[Event] = asyncio.Queue()
    async with served() as line:
        lease = await line.lease()
        async with seated(await line.lease(), start_of()) as other:
            channel = lease.transport.open(start_of("another"), news.put_nowait)
            channel.step(Step(0, Draw(0, 100_000)))
            while not (isinstance(event := await news.get(), StepEvent) and event.tokens):
                pass
            channel.cancel()
            while not (isinstance(event := await news.get(), StepEvent) and event.end):
                pass
            assert event.end is RunEnd.CANCELLED
            assert line.num_held == (2, 2)
            channel.close()
            while line.num_held != (2, 1):
                await asyncio.sleep(0.005)
            assert (await run(other, SHORT)).end is RunEnd.COMPLETE


async def test_a_server_that_stops_loses_every_open_sequence() -> None:
    async with served() as line, AsyncExitStack() as stack:
        seats = [
            await stack.enter_async_context(seated(await line.lease(), start_of(f"say {n}")))
            for n in range(3)
        ]
        speaking = [await begun(seat) for seat in seats]
        await line.server.stop()
        for error in await asyncio.gather(*speaking):
            assert isinstance(error, ReplicaLost)
            assert error.reason == "REPLICA_LOST"
            assert line.server.address in error.message
        await line.freed()


async def test_a_router_that_leaves_ends_its_leases_and_frees_its_sequences() -> None:
    async with served() as line, AsyncExitStack() as stack:
        for n in range(3):
            held = line.server.lease()
            stack.push_async_callback(held.aclose)
            lease = GrantedLease(line.pool, await anext(held))
            await begun(await stack.enter_async_context(seated(lease, start_of(f"say {n}"))))
        assert line.num_held == (3, 3)
        await line.pool.close()
        await line.freed()


async def test_sequences_are_told_that_the_router_left() -> None:
    async with served() as line, seated(await line.lease(), start_of()) as seat:
        speaking = await begun(seat)
        await line.pool.close()
        error = await speaking
        assert isinstance(error, ReplicaLost)


async def test_an_exchange_closed_before_it_began_tells_its_sequences() -> None:
    events: list[Event] = []
    async with served() as line:
        grant = LeaseGrant(line.server.address, "lease", b"secret", line.server.replica.info)
        exchange = Exchange(grant)
        exchange.open(start_of(), events.append, grant)
        await exchange.close()
        assert [type(event) for event in events] == [Failed]
        exchange.open(start_of(), events.append, grant)
        assert [type(event) for event in events] == [Failed, Failed]


async def test_a_lease_after_a_loss_gets_a_stream_of_its_own() -> None:
    async with served() as line:
        async with seated(await line.lease(), start_of()) as seat:
            first = line.pool._exchanges[line.server.address]
            first._call.cancel()
            with pytest.raises(ReplicaLost):
                await run(seat, SHORT)
        async with seated(await line.lease(), start_of()) as seat:
            assert (await run(seat, SHORT)).end is RunEnd.COMPLETE
            assert line.pool._exchanges[line.server.address] is not first


async def test_steps_made_in_one_turn_travel_in_one_message() -> None:
    async with served() as line, AsyncExitStack() as stack:
        seats = [
            await stack.enter_async_context(seated(await line.lease(), start_of(f"say {n}")))
            for n in range(8)
        ]
        before = replace(line.pool.counts)
        one = Step(0, Draw(0, 1))
        said = await asyncio.gather(*(run(seat, one) for seat in seats))
        assert [s.end for s in said] == [RunEnd.COMPLETE] * 8
        counts = line.pool.counts
        assert counts.steps_sent - before.steps_sent == 8
        assert counts.messages_sent - before.messages_sent == 1


async def test_tokens_of_one_pass_travel_in_one_message() -> None:
    async with served() as line, AsyncExitStack() as stack:
        seats = [
            await stack.enter_async_context(seated(await line.lease(), start_of(f"say {n}")))
            for n in range(8)
        ]
        await asyncio.gather(*(run(seat, Step(0, Draw(0, 1))) for seat in seats))
        before = line.pool.counts.messages_received
        engine_counts = engine_of(line.server.replica).counts
        num_passes = engine_counts.forward_passes
        await asyncio.gather(*(run(seat, Step(0, Draw(0, 20), b"so ")) for seat in seats))
        num_passes = engine_counts.forward_passes - num_passes
        assert 20 <= num_passes < 40
        assert line.pool.counts.messages_received - before <= num_passes


async def test_a_lease_has_room_for_one_sequence_at_a_time() -> None:
    async with served() as line:
        lease = await line.lease()
        first = Seat(lease)
        await first.open(start_of())
        with pytest.raises(InternalError, match="one sequence at a time"):
            await Seat(lease).open(start_of())
        assert (await run(first, SHORT)).end is RunEnd.COMPLETE
        await first.close()
