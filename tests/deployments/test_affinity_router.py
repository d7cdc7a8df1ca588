"""Serve's request router with our preference: who comes first, who is passed over, who is left out.

Real routers, and replicas that only have a name: nothing is called.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from deployments import routing
from deployments.affinity import AffinityRouter
from deployments.routing import ADDRESS

DEPLOYMENT = DeploymentID(name="member-tried", app_name="tests")
MAX_LEASES = 8


async def no_length(deadline_s: float) -> int:
    return 0


def make_replica(name: str) -> Any:
    return SimpleNamespace(
        replica_id=ReplicaID(name, DEPLOYMENT),
        max_ongoing_requests=MAX_LEASES,
        replica_metadata={ADDRESS: f"{name}:1"},
        multiplexed_model_ids=set(),
        node_id="node",
        availability_zone=None,
        get_queue_len=no_length,
    )


def make_router(*names: str) -> Any:
    """A router that knows these replicas; needs a running loop."""
    router: Any = AffinityRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
    )
    router.update_replicas([make_replica(name) for name in names])
    return router


def pending(key: str) -> PendingRequest:
    metadata = RequestMetadata("request", f"internal-{key}", session_id=key)
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


async def ranks(router: Any, key: str) -> list[list[str]]:
    found = await router.choose_replicas(router._replicas_list, pending(key))
    return [[replica.replica_id.unique_id for replica in rank] for rank in found]


@pytest.fixture(autouse=True)
def _nobody_is_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_suspect_until_s", {})


async def test_a_conversation_finds_the_same_replica_first_in_every_router() -> None:
    one, other = make_router("a", "b", "c"), make_router("c", "a", "b")
    for number in range(20):
        first, rest = await ranks(one, str(number))
        assert len(first) == 1
        assert len(rest) == 2
        assert first == (await ranks(other, str(number)))[0]


async def test_without_a_key_two_are_compared() -> None:
    (rank,) = await ranks(make_router("a", "b", "c"), "")
    assert len(rank) == 2


@pytest.mark.parametrize("num_leases", [3, MAX_LEASES])
async def test_a_crowded_or_full_replica_is_not_asked_first(num_leases: int) -> None:
    router = make_router("a", "b")
    (home,), _ = await ranks(router, "mine")
    others = {"a", "b"} - {home}
    for name in others:
        router.replica_queue_len_cache.update(ReplicaID(name, DEPLOYMENT), 0)
    router.replica_queue_len_cache.update(ReplicaID(home, DEPLOYMENT), num_leases)
    (rank,) = await ranks(router, "mine")
    assert sorted(rank) == ["a", "b"]


async def test_a_silent_replica_is_left_out_while_there_is_another() -> None:
    router = make_router("a", "b")
    routing.suspect("a:1")
    for number in range(10):
        assert await ranks(router, str(number)) == [["b"], ["b"]]
    assert await ranks(router, "") == [["b"]]
    routing.suspect("b:1")
    (rank,) = await ranks(router, "")
    assert sorted(rank) == ["a", "b"]


async def test_what_serve_says_is_known_to_the_process() -> None:
    router = make_router("a", "b")
    assert routing.num_replicas("member-tried") == 2
    router.on_replica_actor_died(ReplicaID("a", DEPLOYMENT))
    assert routing.num_replicas("member-tried") == 1
    router.update_replicas([])
    assert routing.num_replicas("member-tried") == 0
