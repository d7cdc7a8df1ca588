"""Clients that mean harm: each ends with its status, within bounds, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cluster.router import status
from cluster.router.core import Router
from cluster.router.edge import Edge
from cluster.router.guard import OPEN, SCOPE_BY_METHOD
from cluster.spec import parse_spec
from cuvee.v1 import admin_pb2, blend_pb2, member_pb2, member_pb2_grpc
from cuvee.v1 import generation_pb2 as pb
from tests.hostile import fill, mutated, resident_bytes
from tests.rig import SPEC, Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
GENERATE = "/cuvee.v1.GenerationService/Generate"
STREAM = "/cuvee.v1.GenerationService/StreamGenerate"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
WATCH = "/grpc.health.v1.Health/Watch"
REQUESTS: dict[str, type[Message]] = {
    GENERATE: pb.GenerateRequest,
    STREAM: pb.StreamGenerateRequest,
    "/cuvee.v1.GenerationService/Score": pb.ScoreRequest,
    "/cuvee.v1.GenerationService/CountTokens": pb.CountTokensRequest,
    "/cuvee.v1.BlendService/ListBlends": blend_pb2.ListBlendsRequest,
    "/cuvee.v1.BlendService/GetBlend": blend_pb2.GetBlendRequest,
    "/cuvee.v1.AdminService/GetStatus": admin_pb2.GetStatusRequest,
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest,
    "/grpc.health.v1.Health/List": health_pb2.HealthListRequest,
    WATCH: health_pb2.HealthCheckRequest,
    REFLECT: reflection_pb2.ServerReflectionRequest,
}
NAMED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC.replace("max_new_tokens: 400", "max_new_tokens: 60")) as rig:
        yield rig


@asynccontextmanager
async def own_channel(rig: Rig, **options: int) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own."""
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    given.append(("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.edge.port}", given) as channel:
        yield channel


async def said(rig: Rig, seed: int = 5) -> str:
    """What an honest client is told."""
    request = pb.StreamGenerateRequest(
        blend="tokens",
        prompt="It is a truth",
        sampling={"seed": seed},
        stopping={"max_tokens": 60, "ignore_eos": True},
    )
    pieces = [piece.text_delta async for piece in rig.generation.StreamGenerate(request)]
    return "".join(pieces)


async def nobody_notices(rig: Rig, attack: Callable[[], Awaitable[None]]) -> None:
    """An honest client's replies meanwhile are what they are alone; all is given back after."""
    alone = await said(rig)
    attacking = asyncio.ensure_future(attack())
    await asyncio.sleep(0.05)
    assert await said(rig) == alone
    await attacking
    assert await said(rig) == alone
    while rig.num_held() != (0, 0) or rig.router.num_active:
        await asyncio.sleep(0.01)


async def code_of(call: Any, max_answers: int = 100) -> str:
    """How a call of one raw message ends, or OK after so many answers."""
    try:
        for _ in range(max_answers):
            if await call.read() is grpc.aio.EOF:
                break
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def send(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    call = channel.stream_stream(method)(timeout=20)
    if method == WATCH:  # answers for ever
        reading = asyncio.ensure_future(call.read())
    await call.write(data)
    await call.done_writing()
    if method == WATCH:
        try:
            await reading
            return "OK"
        except grpc.aio.AioRpcError as error:
            return error.code().name
        finally:
            call.cancel()
    return await code_of(call)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert isinstance(details, bytes)
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return info.reason


async def test_every_method_is_attacked() -> None:
    assert REQUESTS.keys() == {*SCOPE_BY_METHOD, *OPEN}


@pytest.mark.parametrize("method", REQUESTS)
async def test_no_bytes_make_a_method_fail_within(rig: Rig, method: str) -> None:
    rng = random.Random(method)
    valid = REQUESTS[method]()
    fill(valid, random.Random(3))
    given = [rng.randbytes(rng.choice((1, 3, 20, 300))) for _ in range(15)]
    given += [mutated(valid.SerializeToString() or b"\x0a\x01a", rng) for _ in range(25)]
    codes = {await send(rig.channel, method, data) for data in given}
    assert codes <= NAMED
    assert "INVALID_ARGUMENT" in codes  # some could not be parsed


@pytest.mark.parametrize("method", [GENERATE, STREAM, *list(REQUESTS)[2:4]])
async def test_no_values_make_a_method_fail_within(rig: Rig, method: str) -> None:
    codes = set()
    for seed in range(60):
        message = REQUESTS[method]()
        fill(message, random.Random(seed))
        codes.add(await send(rig.channel, method, message.SerializeToString()))
    assert codes <= NAMED


async def test_a_message_that_is_too_large_is_refused_before_it_is_parsed(rig: Rig) -> None:
    async def attack() -> None:
        for size in (5 * MIB, 40 * MIB):
            assert await send(rig.channel, GENERATE, bytes(size)) == "RESOURCE_EXHAUSTED"

    before = resident_bytes()
    await nobody_notices(rig, attack)
    assert resident_bytes() - before < 150 * MIB  # both ends are here: what was sent, and a copy


async def test_a_message_may_not_unfold_into_a_larger_one(rig: Rig) -> None:
    request = pb.GenerateRequest(blend="tokens", prompt="\x00" * (60 * MIB))
    async with own_channel(rig, max_send_message_length=-1) as channel:
        call = channel.unary_unary(
            GENERATE, request_serializer=pb.GenerateRequest.SerializeToString
        )(request, compression=grpc.Compression.Gzip, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code().name in {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}


async def test_a_client_that_never_sends_is_not_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RECEIVE_TIMEOUT_S", 0.3)
    for method in (GENERATE, STREAM, REFLECT):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.channel.stream_stream(method)().read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason_of(caught.value) == "NO_MESSAGE"


async def test_a_client_that_sends_nothing_and_leaves_is_told_so(rig: Rig) -> None:
    call = rig.channel.stream_stream(GENERATE)()
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_more_messages_than_one_are_not_read(rig: Rig) -> None:
    """A stream without an end where one message is due: the first counts."""
    request = pb.GenerateRequest(prompt="It is", stopping={"max_tokens": 5}).SerializeToString()
    call = rig.channel.stream_stream(GENERATE)(timeout=20)
    for _ in range(50):
        await call.write(request)
    assert pb.GenerateResponse.FromString(await call.read()).text
    await code_of(call)


async def test_headers_beyond_measure_are_refused(rig: Rig) -> None:
    async def attack() -> None:
        for metadata in (
            (("x-flood", "a" * 200_000),),
            tuple((f"x-{i}", "a" * 20) for i in range(3000)),
        ):
            async with own_channel(rig) as channel:
                listing = channel.unary_unary("/cuvee.v1.BlendService/ListBlends")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await listing(b"", metadata=metadata, timeout=20)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    await nobody_notices(rig, attack)


async def test_readers_that_do_not_read_hold_no_more_than_they_asked_for(rig: Rig) -> None:
    request = pb.StreamGenerateRequest(
        blend="tokens",
        prompt="It is",
        stopping={"max_tokens": 60, "ignore_eos": True},
        output={"num_top_candidates": 20},
    ).SerializeToString()

    async def attack() -> None:
        window = {"http2.lookahead_bytes": 1024, "http2.bdp_probe": 0}
        async with own_channel(rig, **window) as channel:
            calls = [channel.stream_stream(STREAM)() for _ in range(40)]
            for call in calls:
                await call.write(request)
            await asyncio.sleep(2)
            assert rig.router.num_active >= 40  # they wait for their readers, not in memory

    before = resident_bytes()
    await nobody_notices(rig, attack)
    assert resident_bytes() - before < 60 * MIB


async def test_a_thousand_idle_connections_and_streams_disturb_nobody(rig: Rig) -> None:
    async def connections() -> None:
        opened = []
        try:
            for i in range(1000):
                opened.append(socket.create_connection(("127.0.0.1", rig.edge.port)))
                if i % 2:
                    opened[-1].sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
                if i % 50 == 0:
                    await asyncio.sleep(0)
        finally:
            for connection in opened:
                connection.close()

    async def streams() -> None:
        async with own_channel(rig) as channel:
            calls = [channel.stream_stream(STREAM)() for _ in range(1500)]
            await asyncio.gather(*(call.wait_for_connection() for call in calls[:10]))
            await asyncio.sleep(0.5)
            for call in calls:
                call.cancel()

    before = resident_bytes()
    await nobody_notices(rig, connections)
    await nobody_notices(rig, streams)
    assert resident_bytes() - before < 150 * MIB


async def test_leases_cannot_be_guessed_and_guessing_disturbs_nobody(rig: Rig) -> None:
    (server,) = rig.servers["austen"]
    rng = random.Random(1)

    async def attack() -> None:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = member_pb2_grpc.MemberServiceStub(channel)
            for i in range(60):
                lease_id = next(iter(server.leases._live), rng.randbytes(8).hex())
                metadata = (
                    ("cuvee-lease-id", lease_id),
                    ("cuvee-lease-secret-bin", rng.randbytes(rng.choice((0, 1, 32, 33)))),
                )
                if i % 2:
                    call = stub.GetVocabulary(
                        member_pb2.GetVocabularyRequest(), metadata=metadata, timeout=10
                    )
                else:
                    call = stub.Exchange(metadata=metadata, timeout=10).read()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    await nobody_notices(rig, attack)


@pytest.mark.parametrize(
    "wanted",
    [
        {"regex": "(a{1,1000}){1,1000}"},
        {"regex": "((((a{1,60}){1,60}){1,60}){1,60})"},
        {"regex": "(?:" * 2000 + "a" + ")*" * 2000},
        {"json_schema": '{"items":' * 3000 + "true" + "}" * 3000},
        {"json_schema": '{"$ref": "#"}'},
        {"json_schema": '{"type": "string", "minLength": 1000000000}'},
        {"json_schema": '{"enum": [' + ",".join(map(str, range(9000))) + "]}"},
    ],
    ids=lambda wanted: next(iter(wanted.values()))[:24],
)
async def test_a_format_beyond_measure_is_refused_in_bounded_time(
    rig: Rig, wanted: dict[str, str]
) -> None:
    async def attack() -> None:
        request = pb.GenerateRequest(prompt="It is", stopping={"max_tokens": 8}, format=wanted)
        code = await send(rig.channel, GENERATE, request.SerializeToString())
        assert code in {*NAMED, "RESOURCE_EXHAUSTED"}

    before = resident_bytes()
    async with asyncio.timeout(30):
        await nobody_notices(rig, attack)
    assert resident_bytes() - before < 200 * MIB


async def test_a_reader_that_does_not_read_ends_with_its_time(rig: Rig) -> None:
    text = SPEC.replace("limits: {", "limits: {max_deadline_s: 1, ")
    edge = Edge(Router(parse_spec(text), rig.members))
    await edge.start("127.0.0.1", 0)
    await edge.router.learn_members()
    window = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    request = pb.StreamGenerateRequest(
        blend="tokens",
        prompt="It is",
        stopping={"max_tokens": 400, "ignore_eos": True},
        output={"num_top_candidates": 20},
    ).SerializeToString()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}", window) as channel:
            calls = [channel.stream_stream(STREAM)() for _ in range(4)]
            for call in calls:
                await call.write(request)
            while edge.router.num_active < len(calls):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(10):
                while edge.router.num_active or rig.num_held() != (0, 0):
                    await asyncio.sleep(0.05)
            for call in calls:
                async with asyncio.timeout(10):  # what is read late ends with its status, too
                    assert await code_of(call, 10_000) == "DEADLINE_EXCEEDED"
    finally:
        await edge.stop(0)
