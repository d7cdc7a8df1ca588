"""Several replicas of each member: the same text whichever serve it, and when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from cluster.members.base import Prompt
from cluster.members.server import MemberServer
from cluster.router.answers import Outcome
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLENDS = ("tokens", "replies", "mixed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[Rig]:
    async with running(num_replicas=2) as rig:
        yield rig


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed() -> dict[tuple[str, int], str]:
    """What each reply says where every member has one replica."""
    async with running() as rig:
        return {
            (blend, seed): (await reply(rig, blend, seed))[0]
            for blend in BLENDS
            for seed in range(4)
        }


def request(blend: str, seed: int) -> GenerationRequest:
    return GenerationRequest(
        blend,
        Prompt(text="It is a truth"),
        Sampling(seed=seed),
        Stopping(max_tokens=80, ignore_eos=True),
    )


async def reply(rig: Rig, blend: str, seed: int) -> tuple[str, Outcome]:
    updates = [update async for update in rig.router.generate(request(blend, seed))]
    outcome = updates[-1].outcome
    assert outcome is not None
    return "".join(update.text for update in updates), outcome


@pytest.mark.parametrize("blend", BLENDS)
async def test_two_replicas_say_what_one_says(
    two: Rig, undisturbed: dict[tuple[str, int], str], blend: str
) -> None:
    texts = await asyncio.gather(*(reply(two, blend, seed) for seed in range(4)))
    assert [text for text, _ in texts] == [undisturbed[blend, seed] for seed in range(4)]
    assert all(server.replica.num_sequences == 0 for server in two.all_servers)


@pytest.mark.parametrize("blend", BLENDS)
async def test_a_replica_lost_in_mid_stream_is_replaced_without_a_trace_in_the_text(
    undisturbed: dict[tuple[str, int], str], blend: str
) -> None:
    async with running(num_replicas=2) as rig:
        text, num_tokens = "", 0
        async with aclosing(rig.router.generate(request(blend, 1))) as updates:
            async for update in updates:
                text += update.text
                num_tokens += len(update.tokens)
                if num_tokens >= 20 and (lost := speaking(rig)):
                    await lose(rig, lost)
                if update.outcome is not None:
                    outcome = update.outcome
    assert text == undisturbed[blend, 1]
    assert sum(usage.leases for usage in outcome.usage) == len(outcome.usage) + 1


def speaking(rig: Rig) -> MemberServer | None:
    """A replica with an open sequence, while none is lost yet."""
    if any(len(group) < 2 for group in rig.servers.values()):
        return None
    return next(server for server in rig.all_servers if server.replica.num_sequences)


async def lose(rig: Rig, lost: MemberServer) -> None:
    """Its port closes in mid-sentence, and no new lease reaches it."""
    for name, group in rig.servers.items():
        if lost in group:
            group.remove(lost)
            rig.members[name].servers.remove(lost)
    await lost.stop()
    lost.replica.stop()
