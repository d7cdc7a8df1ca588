"""What routers tell Prometheus: right numbers, to callers who may read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, Counter

from cluster.access.keyring import Keyring
from cluster.access.keys import LimitsEntry, add_key, new_key
from cluster.members.base import StepToken
from cluster.router import exposition
from cluster.router.answers import ReplyToken, Update
from cluster.router.exposition import MetricsEndpoint
from cluster.router.metrics import RouterMetrics
from cuvee.v1 import generation_pb2 as pb
from tests.rig import SPEC, Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC + "serving: {port: 0, metrics: {port: 0}}\n") as rig:
        yield rig


def value(rig: Rig, name: str, **labels: str) -> float:
    return rig.router.metrics.registry.get_sample_value(name, labels) or 0.0


def tokens(*members: str) -> list[ReplyToken]:
    return [ReplyToken(name, 0, StepToken(0, b"x", 0.0)) for name in members]


async def test_a_reply_is_timed_from_the_call_to_its_last_token(rig: Rig) -> None:
    now_s = 100.0
    metrics = RouterMetrics(rig.router, lambda: now_s)
    clock = metrics.clock("tokens")
    for then_s, update in (
        (100.0, Update()),  # its start
        (102.0, Update(tokens=tokens("a", "a"))),
        (105.0, Update(tokens=tokens("a", "b", "b"))),
        (106.0, Update(tokens=tokens("a"))),
    ):
        now_s = then_s
        clock.see(update)
    read = metrics.registry.get_sample_value
    blend = {"blend": "tokens"}
    assert read("cuvee_time_to_first_token_seconds_sum", blend) == 2.0
    assert read("cuvee_inter_token_latency_seconds_sum", blend) == 4.0
    assert read("cuvee_inter_token_latency_seconds_count", blend) == 5.0  # the second came along
    assert read("cuvee_inter_token_latency_seconds_bucket", blend | {"le": "0.5"}) == 1.0
    assert read("cuvee_e2e_request_latency_seconds_count", blend) == 0.0  # it has no end
    assert clock.num_switches == 2


async def test_what_replies_cost_is_counted_by_blend_and_member(rig: Rig) -> None:
    names = ("austen", "kjv")
    drawn = dict.fromkeys(names, 0)
    speakers: list[str] = []
    request = pb.StreamGenerateRequest(
        blend="tokens", prompt="It is", stopping={"max_tokens": 40, "ignore_eos": True}
    )
    async for piece in rig.generation.StreamGenerate(request):
        for token in piece.tokens:
            drawn[token.member] += 1
            speakers.append(token.member)
    by_member = {
        name: value(rig, "cuvee_generation_tokens_total", blend="tokens", member=name)
        for name in names
    }
    assert by_member == drawn
    switches = sum(a != b for a, b in pairwise(speakers))
    assert value(rig, "cuvee_speaker_switches_total", blend="tokens") == switches
    assert value(rig, "cuvee_time_to_first_token_seconds_count", blend="tokens") == 1
    assert value(rig, "cuvee_inter_token_latency_seconds_count", blend="tokens") == 39
    assert value(rig, "cuvee_e2e_request_latency_seconds_count", blend="tokens") == 1
    ended = {"blend": "tokens", "finished_reason": "max_tokens"}
    assert value(rig, "cuvee_request_success_total", **ended) == 1
    caught_up = {
        n: value(rig, "cuvee_catch_up_tokens_total", blend="tokens", member=n) for n in drawn
    }
    assert all(0 < caught_up[n] <= 40 - drawn[n] for n in names)
    weight = value(rig, "cuvee_member_weight_ratio", blend="tokens", member="austen")
    assert weight == pytest.approx(0.6)
    assert not any(value(rig, "cuvee_num_leases", member=name) for name in names)


async def test_gauges_tell_what_is_under_way_and_failures_their_reason(rig: Rig) -> None:
    request = pb.StreamGenerateRequest(
        blend="tokens", prompt="It is", stopping={"max_tokens": 300, "ignore_eos": True}
    )
    call = rig.generation.StreamGenerate(request)
    while not (await call.read()).tokens:
        pass
    assert value(rig, "cuvee_num_requests_running") == 1
    assert value(rig, "cuvee_num_leases", member="austen") == 1
    assert value(rig, "cuvee_catch_up_backlog_tokens") >= 0
    call.cancel()
    while rig.num_held() != (0, 0) or rig.router.num_active:
        await asyncio.sleep(0.01)
    assert value(rig, "cuvee_num_requests_running") == 0
    assert value(rig, "cuvee_num_leases", member="austen") == 0
    assert value(rig, "cuvee_catch_up_backlog_tokens") == 0
    assert value(rig, "cuvee_request_failure_total", reason="CANCELLED") == 1


async def test_the_edge_tells_them_over_http_where_the_file_says_so(rig: Rig) -> None:
    status, body = await ask(rig.edge.metrics.port, "GET /metrics")
    assert status == 200
    assert b"# TYPE cuvee_time_to_first_token_seconds histogram" in body


async def ask(port: int, line: str, headers: str = "") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]) if head else 0, body


@pytest_asyncio.fixture(loop_scope="module")
async def endpoint(tmp_path: Path) -> AsyncIterator[tuple[MetricsEndpoint, dict[str, str]]]:
    """With keys of every kind."""
    registry = CollectorRegistry()
    Counter("seen", "Any.", registry=registry)
    keys = {}
    for scope in ("metrics", "generate"):
        made = new_key(scope, (scope,), LimitsEntry())
        add_key(tmp_path / "keys.yaml", scope, made.entry)
        keys[scope] = made.text
    endpoint = MetricsEndpoint(registry, Keyring(tmp_path / "keys.yaml"))
    await endpoint.start("127.0.0.1", 0)
    yield endpoint, keys
    await endpoint.stop()


async def test_only_a_key_with_the_scope_metrics_may_read(
    endpoint: tuple[MetricsEndpoint, dict[str, str]],
) -> None:
    port, keys = endpoint[0].port, endpoint[1]

    async def status(headers: str) -> int:
        return (await ask(port, "GET /metrics", headers))[0]

    right = f"Authorization: Bearer {keys['metrics']}\r\n"
    assert await status("") == 401
    assert await status("Authorization: Basic x\r\n") == 401
    assert await status("Authorization: Bearer cuvee_metrics_x\r\n") == 401
    assert await status(right * 2) == 401
    assert await status(f"Authorization: Bearer {keys['generate']}\r\n") == 403
    assert await ask(
        port, "GET /metrics?x=1", right.lower().replace(keys["metrics"].lower(), keys["metrics"])
    ) != (0, b"")
    status_and_body = await ask(port, "GET /metrics", right)
    assert status_and_body[0] == 200
    assert b"seen_total 0.0" in status_and_body[1]


async def test_nothing_else_is_answered(
    endpoint: tuple[MetricsEndpoint, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = endpoint[0].port
    assert (await ask(port, "GET /"))[0] == 404
    assert (await ask(port, "POST /metrics"))[0] == 405
    assert await ask(port, "GET /metrics", "X: " + "y" * 100_000 + "\r\n") == (0, b"")
    monkeypatch.setattr(exposition, "_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""  # who says nothing is let go
    writer.close()


async def test_a_second_router_of_a_machine_tells_when_the_first_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "_RETRY_S", 0.01)
    first, second = (MetricsEndpoint(CollectorRegistry(), None) for _ in range(2))
    await first.start("127.0.0.1", 0)
    await second.start("127.0.0.1", first.port)
    assert second.port == 0
    await first.stop()
    while not second.port:
        await asyncio.sleep(0.01)
    assert (await ask(second.port, "GET /metrics"))[0] == 200
    await second.stop()
