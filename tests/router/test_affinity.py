"""Turns of one conversation return to the replica that holds its beginning, counted in tokens."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio

from cluster.members.affinity import preferred
from cluster.members.base import Prompt
from cluster.members.seat import SeatUsage
from cluster.members.server import MemberServer
from cluster.router.conversation import conversation_key
from cluster.router.requests import GenerationRequest, Overrides, Sampling, Stopping
from cluster.text.chat import Message
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_REPLICAS = 3
NUM_TOKENS = 24
NUM_SHARED = 30  # tokens that the prompts of all conversations begin with, at most
SPEC = """
version: 1
members:
  austen: {model: embedded:tiny-austen, dtype: float32, kv_memory: 32MiB}
  bytes: {model: embedded:tiny-bytes, dtype: float32, kv_memory: 32MiB}
blends:
  mixed: {method: mixture, members: {austen: 0.5, bytes: 0.5}}
"""
QUESTION = Message("user", "And then?")
_numbers = itertools.count(100)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running(SPEC, num_replicas=NUM_REPLICAS) as rig:
        yield rig


@pytest.fixture
def opening() -> Message:
    """How this test's conversation begins: no other's does."""
    number = next(_numbers)
    return Message("user", f"{number} ships went down to the sea; what befell them in the night?")


@dataclass
class Turn:
    """A reply, and what it cost each member."""

    text: str
    cost: dict[str, SeatUsage]


async def turn(
    rig: Rig, messages: Sequence[Message], conversation_id: str = "", member: str = "bytes"
) -> Turn:
    """The greedy reply to a conversation."""
    request = GenerationRequest(
        "mixed",
        Prompt(messages=tuple(messages)),
        Sampling(temperature=0, seed=1),
        Stopping(max_tokens=NUM_TOKENS, ignore_eos=True),
        overrides=Overrides(member=member or None),
        conversation_id=conversation_id,
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return Turn(text, {usage.member: usage.seat for usage in outcome.usage})


def later(opening: Message, first: Turn) -> list[Message]:
    return [opening, Message("assistant", first.text), QUESTION]


def elsewhere(conversation_id: str, servers: list[MemberServer]) -> str:
    """The id of another conversation, whose turns go to another replica."""
    home = preferred_for(conversation_id, servers)
    ids = (f"{conversation_id}-{number}" for number in range(100))
    return next(other for other in ids if preferred_for(other, servers) is not home)


def preferred_for(conversation_id: str, servers: list[MemberServer]) -> MemberServer:
    key = conversation_key(Prompt(text="any"), conversation_id)
    name = preferred(key, {server.address: 0 for server in servers})
    return next(server for server in servers if server.address == name)


@pytest.mark.parametrize("conversation_id", ["", "mine"])
async def test_a_later_turn_processes_only_what_is_new(
    rig: Rig, opening: Message, conversation_id: str
) -> None:
    first = await turn(rig, [opening], conversation_id)
    second = await turn(rig, later(opening, first), conversation_id)
    cost, before = second.cost["bytes"], first.cost["bytes"]
    held = before.prompt_tokens + NUM_TOKENS - 1  # what is drawn last is fed to nobody
    assert cost.cached_tokens == held
    assert cost.processed_tokens == cost.prompt_tokens + NUM_TOKENS - 1 - held


async def test_elsewhere_it_costs_the_whole_prompt_and_says_the_same(
    rig: Rig, opening: Message
) -> None:
    first = await turn(rig, [opening], "mine")
    there = elsewhere("mine", rig.servers["bytes"])
    away = await turn(rig, later(opening, first), there)
    home = await turn(rig, later(opening, first), "mine")
    cost = away.cost["bytes"]
    assert cost.cached_tokens < NUM_SHARED
    assert cost.processed_tokens + cost.cached_tokens == cost.prompt_tokens + NUM_TOKENS - 1
    assert home.cost["bytes"].cached_tokens > home.cost["bytes"].prompt_tokens / 2
    assert home.text == away.text


async def test_all_members_of_a_blend_return(rig: Rig, opening: Message) -> None:
    first = await turn(rig, [opening], member="")
    second = await turn(rig, later(opening, first), member="")
    assert len(second.cost) == 2
    for member, cost in second.cost.items():
        assert cost.cached_tokens >= first.cost[member].prompt_tokens


async def test_a_lost_replica_costs_the_prefill_and_nothing_else(
    rig: Rig, opening: Message
) -> None:
    first = await turn(rig, [opening], "mine")
    undisturbed = await turn(rig, later(opening, first), "mine")
    servers = rig.members["bytes"].servers
    lost = preferred_for("mine", servers)
    servers.remove(lost)
    second = await turn(rig, later(opening, first), "mine")
    cost = second.cost["bytes"]
    assert second.text == undisturbed.text
    assert cost.cached_tokens < NUM_SHARED
    third = await turn(rig, later(opening, first), "mine")  # it has a new home
    servers.append(lost)
    assert third.cost["bytes"].cached_tokens >= cost.prompt_tokens - 1


async def test_a_crowded_replica_sends_the_conversation_away(rig: Rig, opening: Message) -> None:
    """In turn to all three then, so one of three turns comes home."""
    first = await turn(rig, [opening], "mine")
    crowd = [preferred_for("mine", rig.servers["bytes"]).lease() for _ in range(6)]
    for lease in crowd:
        await anext(lease)
    turns = [await turn(rig, later(opening, first), "mine") for _ in range(NUM_REPLICAS)]
    for lease in crowd:
        await lease.aclose()
    assert len({turn.text for turn in turns}) == 1
    costs = [turn.cost["bytes"] for turn in turns]
    assert sum(cost.cached_tokens < NUM_SHARED for cost in costs) == NUM_REPLICAS - 1
