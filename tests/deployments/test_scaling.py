"""A load that comes and goes: replicas follow it, and no answer tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cuvee.v1 import generation_pb2 as pb

from .conftest import Client, Reply

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_STREAMS = 8


def request(seed: int) -> dict[str, Any]:
    stopping = {"max_tokens": 200, "ignore_eos": True}
    return {"blend": "steep", "sampling": {"seed": seed}, "stopping": stopping}


def num_running(client: Client, member: str) -> int:
    return list(client.replicas(member).values()).count("RUNNING")


def until(is_so: Callable[[], bool]) -> None:
    """The test's time limit is the only clock."""
    while not is_so():
        time.sleep(0.2)


def test_a_member_follows_the_load_up_and_down_and_no_answer_tells(client: Client) -> None:
    """Both members hold a lease for every stream; one of them has nearly all the work."""
    until(lambda: num_running(client, "rarely") == 0)  # nobody has asked
    assert num_running(client, "often") == 1
    over = threading.Event()
    most_rare = 0

    def stream(seed: int) -> list[Reply]:
        replies = [client.stream(**request(seed))]
        while not over.is_set():
            replies.append(client.stream(**request(seed)))
        return replies

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        streams = [pool.submit(stream, seed) for seed in range(NUM_STREAMS)]
        try:
            while num_running(client, "often") < 3 and not any(s.done() for s in streams):
                most_rare = max(most_rare, num_running(client, "rarely"))
                time.sleep(0.2)
        finally:
            over.set()
        replies = [stream.result() for stream in streams]
    assert most_rare == 1
    for seed, said in enumerate(replies):
        assert len({reply.text for reply in said}) == 1, seed
    following = client.stream(**request(0))  # while the others leave
    until(lambda: num_running(client, "often") == 1)
    until(lambda: num_running(client, "rarely") == 0)
    alone = [client.stream(**request(seed)) for seed in range(2)]
    assert [reply.text for reply in alone] == [said[0].text for said in replies[:2]]
    assert following.text == alone[0].text


def test_turns_of_a_conversation_return_to_the_replica_that_holds_it(client: Client) -> None:
    """By chance alone, six conversations would all do so once in 64 times."""
    for number in range(6):
        opening = {"role": pb.ROLE_USER, "content": f"{number} ships went down to the sea."}
        first = chat(client, [opening])
        answer = {"role": pb.ROLE_ASSISTANT, "content": first.text}
        second = chat(client, [opening, answer, {"role": pb.ROLE_USER, "content": "And then?"}])
        (before,), (after,) = first.outcome.usage.members, second.outcome.usage.members
        assert after.cached_tokens >= before.prompt_tokens
        assert after.processed_tokens < after.prompt_tokens


def chat(client: Client, messages: list[dict[str, Any]]) -> Reply:
    """The next turn, by a member with two replicas."""
    return client.stream(
        blend="tokens",
        prompt=None,
        chat={"messages": messages},
        overrides={"member": "austen"},
        stopping={"max_tokens": 16, "ignore_eos": True},
    )
