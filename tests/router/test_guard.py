"""Who may call: keys, client certificates, scopes; and certificates that change under a server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from cluster.access.caller import Caller, Scope, current_caller
from cluster.access.keyring import CHECK_INTERVAL_S
from cluster.access.keys import LimitsEntry, add_key, new_key, remove_key, split_key
from cluster.errors import SpecError
from cluster.router.blends import ServedBlend
from cluster.router.core import Router
from cluster.router.edge import Edge, _Health, add_services
from cluster.router.guard import OPEN, SCOPE_BY_METHOD
from cluster.spec import parse_spec
from cuvee.v1 import blend_pb2, blend_pb2_grpc, generation_pb2, generation_pb2_grpc
from tests.certificates import Authority
from tests.rig import SPEC, Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIST = "/cuvee.v1.BlendService/ListBlends"
SERVING = health_pb2.HealthCheckResponse.SERVING


class Listening(Router):
    """A router that remembers who called."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.callers: list[Caller] = []

    def blend(self, name: str) -> ServedBlend:
        self.callers.append(current_caller.get())
        return super().blend(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC) as rig:
        yield rig


@asynccontextmanager
async def guarded(rig: Rig, serving: str) -> AsyncIterator[Edge]:
    """Another edge over the rig's members."""
    edge = Edge(Listening(parse_spec(f"{SPEC}serving: {{{serving}}}\n"), rig.members))
    await edge.start("127.0.0.1", 0)
    await edge.router.learn_members()
    try:
        yield edge
    finally:
        await edge.stop(0)


def make_key(file: Path, key_id: str = "ci", *scopes: str) -> str:
    made = new_key(key_id, scopes or ("generate",), LimitsEntry(max_concurrent=3))
    add_key(file, key_id, made.entry)
    return made.text


def auth(folder: Path) -> str:
    return f"auth: {{keys: {folder}/keys.yaml}}"


def shown(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def plain(edge: Edge) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{edge.port}")


def generation(channel: grpc.aio.Channel) -> Any:
    return generation_pb2_grpc.GenerationServiceStub(channel)


def blends(channel: grpc.aio.Channel) -> Any:
    return blend_pb2_grpc.BlendServiceStub(channel)


async def refused(call: Any) -> tuple[str, str, str]:
    """Code, reason and words of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert isinstance(details, bytes)
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return caught.value.code().name, info.reason, caught.value.details() or ""


async def refused_raw(channel: grpc.aio.Channel, method: str, key: str = "") -> tuple[str, str]:
    """The same of any method, called without sending anything."""
    metadata = shown(key) if key else ()
    call = channel.stream_stream(method)(metadata=metadata, timeout=10)
    code, reason, _ = await refused(call.read())
    return code, reason


class Registry:
    """Stands for a server: remembers which methods are registered."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """gRPC's older way; all of it comes by the other one as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.methods |= {f"/{service}/{name}" for name in handlers}


async def test_every_method_is_in_the_table_and_nothing_else_is(rig: Rig) -> None:
    registry = Registry()
    add_services(registry, rig.router, _Health())  # type: ignore[arg-type]
    assert LIST in registry.methods
    assert registry.methods == {*SCOPE_BY_METHOD, *OPEN}
    assert not SCOPE_BY_METHOD.keys() & OPEN


async def test_without_a_key_no_method_answers_and_no_message_is_waited_for(
    rig: Rig, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys.yaml", "numbers", "metrics")
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        for method in SCOPE_BY_METHOD:
            assert await refused_raw(channel, method) == ("UNAUTHENTICATED", "NO_API_KEY")
            assert await refused_raw(channel, method, "x") == ("UNAUTHENTICATED", "INVALID_API_KEY")
            assert await refused_raw(channel, method, key) == ("PERMISSION_DENIED", "SCOPE_MISSING")
        assert not edge.router.callers  # type: ignore[attr-defined]


async def test_a_method_in_no_table_is_refused_to_everybody(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "keys.yaml", "all", "generate", "admin", "metrics")
    monkeypatch.delitem(SCOPE_BY_METHOD, LIST)
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        assert await refused_raw(channel, LIST, key) == ("PERMISSION_DENIED", "METHOD_NOT_OPEN")
    assert await refused_raw(rig.channel, LIST) == ("PERMISSION_DENIED", "METHOD_NOT_OPEN")


async def test_a_key_opens_what_its_scopes_say_and_names_the_caller(
    rig: Rig, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys.yaml")
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        listed = await blends(channel).ListBlends(
            blend_pb2.ListBlendsRequest(), metadata=shown(key)
        )
        assert len(listed.blends) == 3
        await blends(channel).GetBlend(
            blend_pb2.GetBlendRequest(name="tokens"),
            metadata=(("authorization", f"bearer  {key}"),),
        )
        request = generation_pb2.StreamGenerateRequest(prompt="It is", stopping={"max_tokens": 3})
        async for _ in generation(channel).StreamGenerate(request, metadata=shown(key)):
            pass
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(metadata=shown(key))
        await reflect.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert len((await reflect.read()).list_services_response.service) == 5
        callers = edge.router.callers  # type: ignore[attr-defined]
        assert {caller.key_id for caller in callers} == {"ci"}
        assert callers[0].scopes == {Scope.GENERATE}
        assert callers[0].limits.max_concurrent == 3


@pytest.mark.parametrize("given", ["", "Basic x", "Bearer", "Bearer ", "Bearer {key} x", "{key}"])
async def test_only_one_bearer_key_is_a_key(rig: Rig, tmp_path: Path, given: str) -> None:
    key = make_key(tmp_path / "keys.yaml")
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        listing = blends(channel).ListBlends
        metadata = (("authorization", given.format(key=key)),)
        call = listing(blend_pb2.ListBlendsRequest(), metadata=metadata)
        assert (await refused(call))[0] == "UNAUTHENTICATED"
        call = listing(blend_pb2.ListBlendsRequest(), metadata=shown(key) * 2)
        assert (await refused(call))[:2] == ("UNAUTHENTICATED", "NO_API_KEY")


async def test_anybody_may_ask_whether_all_is_well_and_nobody_which_blends_there_are(
    rig: Rig, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "keys.yaml")
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        check: Callable[..., Any] = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[no-untyped-call]
        while (await check(health_pb2.HealthCheckRequest())).status != SERVING:
            await asyncio.sleep(0.02)
        for name in ("tokens", "nope"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (await refused(check(request)))[:2] == ("UNAUTHENTICATED", "NO_API_KEY")
        request = health_pb2.HealthCheckRequest(service="tokens")
        assert (await check(request, metadata=shown(key))).status == SERVING


async def test_health_can_be_watched(rig: Rig) -> None:
    watch: Any = health_pb2_grpc.HealthStub(rig.channel).Watch  # type: ignore[no-untyped-call]
    call = watch(health_pb2.HealthCheckRequest(service="tokens"))
    while (await call.read()).status != SERVING:
        pass
    call.cancel()
    listed = await health_pb2_grpc.HealthStub(rig.channel).List(  # type: ignore[no-untyped-call]
        health_pb2.HealthListRequest()
    )
    assert listed.statuses["tokens"].status == SERVING


async def test_a_revoked_key_ends_new_calls_and_no_reply_under_way(
    rig: Rig, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    key = make_key(file)
    async with guarded(rig, auth(tmp_path)) as edge, plain(edge) as channel:
        request = generation_pb2.StreamGenerateRequest(
            blend="tokens", prompt="It is", stopping={"max_tokens": 300, "ignore_eos": True}
        )
        call = generation(channel).StreamGenerate(request, metadata=shown(key))
        pieces = aiter(call)
        await anext(pieces)
        remove_key(file, "ci")
        await asyncio.sleep(CHECK_INTERVAL_S)
        listing = blends(channel).ListBlends(blend_pb2.ListBlendsRequest(), metadata=shown(key))
        assert (await refused(listing))[:2] == ("UNAUTHENTICATED", "INVALID_API_KEY")
        assert [piece async for piece in pieces][-1].outcome.usage.completion_tokens == 300


async def test_refused_calls_are_logged_seldom_and_without_secrets(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = make_key(tmp_path / "keys.yaml")
    _, secret = split_key(key)
    async with (
        guarded(rig, auth(tmp_path)) as edge,
        plain(edge) as channel,
    ):
        with caplog.at_level(logging.DEBUG):
            for i in range(100):
                await refused_raw(channel, LIST, f"cuvee_guess-{i}_{secret}")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("cluster")]
    assert 1 <= len(said) <= 5
    assert "guess-0" in said[0]
    assert secret not in caplog.text


async def test_a_missing_key_file_stops_the_edge_from_starting(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such key file"):
        async with guarded(rig, auth(tmp_path)):
            pass


# --- TLS ---------------------------------------------------------------------------------------


def secure(edge: Edge, authority: Authority, client: Any = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.certificate, client and client.key, client and client.certificate
    )
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{edge.port}", credentials, own_connection)


def tls(folder: Path, more: str = "") -> str:
    return f"tls: {{certificate: {folder}/tls.crt, key: {folder}/tls.key{more}}}"


async def list_over(channel: grpc.aio.Channel, key: str = "") -> Any:
    metadata = shown(key) if key else ()
    return await blends(channel).ListBlends(
        blend_pb2.ListBlendsRequest(), metadata=metadata, timeout=5
    )


async def test_new_connections_get_the_new_certificate_and_old_streams_go_on(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority("old"), Authority("new")
    old.issue("edge").write(tmp_path)
    key = make_key(tmp_path / "keys.yaml")
    serving = f"{auth(tmp_path)}, {tls(tmp_path)}"
    async with guarded(rig, serving) as edge, secure(edge, old) as channel:
        request = generation_pb2.StreamGenerateRequest(
            prompt="It is", stopping={"max_tokens": 200, "ignore_eos": True}
        )
        call = generation(channel).StreamGenerate(request, metadata=shown(key))
        pieces = aiter(call)
        await anext(pieces)

        renewed = new.issue("edge")
        (tmp_path / "tls.crt").write_bytes(renewed.certificate)  # its key is yet to come
        async with secure(edge, old) as between:
            assert await list_over(between, key)
        assert "the certificate stays as it was" in caplog.text
        renewed.write(tmp_path)
        async with secure(edge, new) as after:
            assert await list_over(after, key)
        async with secure(edge, old) as stale:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_over(stale, key)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await list_over(channel, key)
        assert [piece async for piece in pieces][-1].outcome.usage.completion_tokens == 200
        async with plain(edge) as clear:
            with pytest.raises(grpc.aio.AioRpcError):
                await list_over(clear, key)


async def test_a_client_certificate_names_the_caller(rig: Rig, tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    ours.issue("edge").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(ours.certificate)
    async with guarded(rig, tls(tmp_path, f", client_ca: {tmp_path}/ca.crt")) as edge:
        async with secure(edge, ours, ours.issue("mobile app")) as channel:
            await blends(channel).GetBlend(blend_pb2.GetBlendRequest(name="tokens"))
        (caller,) = edge.router.callers  # type: ignore[attr-defined]
        assert (caller.key_id, caller.scopes) == ("cn:mobile app", {Scope.GENERATE})
        for client in (None, theirs.issue("mobile app")):
            async with secure(edge, ours, client) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await list_over(channel)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_with_keys_a_certificate_alone_is_not_enough(rig: Rig, tmp_path: Path) -> None:
    ours = Authority("ours")
    ours.issue("edge").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(ours.certificate)
    key = make_key(tmp_path / "keys.yaml")
    serving = f"{auth(tmp_path)}, {tls(tmp_path, f', client_ca: {tmp_path}/ca.crt')}"
    async with guarded(rig, serving) as edge, secure(edge, ours, ours.issue("app")) as channel:
        assert await refused_raw(channel, LIST) == ("UNAUTHENTICATED", "NO_API_KEY")
        assert await list_over(channel, key)


@pytest.mark.parametrize("harm", ["no file", "no certificate", "another key", "no authorities"])
async def test_an_edge_with_unusable_certificates_does_not_start(
    rig: Rig, tmp_path: Path, harm: str
) -> None:
    authority = Authority("ours")
    authority.issue("edge").write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(b"" if harm == "no authorities" else authority.certificate)
    if harm == "no file":
        (tmp_path / "tls.crt").unlink()
    elif harm == "no certificate":
        (tmp_path / "tls.crt").write_text("words")
    elif harm == "another key":
        (tmp_path / "tls.key").write_bytes(authority.issue("other").key)
    with pytest.raises(SpecError, match=r"tls|authorities"):
        async with guarded(rig, tls(tmp_path, f", client_ca: {tmp_path}/ca.crt")):
            pass
