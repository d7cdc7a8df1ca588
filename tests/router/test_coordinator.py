"""A generation over scripted members: schedule, attribution, stops, lost replicas, cleaning up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cluster.blending.mixture import Mixture
from cluster.errors import InvalidRequest, Overloaded, Unavailable
from cluster.members.base import Prompt
from cluster.members.scripted import ScriptedLease, ScriptedMember, scripted_members
from cluster.router.answers import FinishReason, Outcome, ReplyToken, Update
from cluster.router.blends import ServedBlend
from cluster.router.coordinator import Generation
from cluster.router.plan import make_plan
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from cluster.router.seats import MAX_LOSSES_WITHOUT_PROGRESS
from cluster.spec import LimitsSpec, MixtureSpec

ALPHABETS = (b"abc. ", b"xyz. ")
NUM_TOKENS = 120


def make_members(**changes: Any) -> dict[str, ScriptedMember]:
    members = scripted_members(("low", "high"), ALPHABETS)
    for name, lose_after in changes.items():
        members[name].lose_after = lose_after
    return members


def make_generation(
    members: Mapping[str, ScriptedMember],
    span: Any = "token",
    seed: int = 1,
    lease_timeout_s: float = 1,
    **stopping: Any,
) -> Generation:
    spec = MixtureSpec(method="mixture", span=span, members={"low": 1.0, "high": 1.0})
    infos = {name: member.info for name, member in members.items()}
    request = GenerationRequest(
        "b",
        Prompt(text="go"),
        Sampling(seed=seed),
        Stopping(**{"max_tokens": NUM_TOKENS} | stopping),
    )
    plan = make_plan(request, ServedBlend("b", spec, "r1", infos), LimitsSpec(), fresh_seed=0)
    return Generation(plan, members, lease_timeout_s)


async def collect(generation: Generation) -> tuple[str, list[ReplyToken], Outcome]:
    updates: list[Update] = [update async for update in generation.updates()]
    assert all(update.outcome is None for update in updates[:-1])
    outcome = updates[-1].outcome
    assert outcome is not None
    text = "".join(update.text for update in updates)
    return text, [token for update in updates for token in update.tokens], outcome


def seed_of(speaker: str) -> int:
    """A seed whose reply, as a whole, that member speaks."""
    names = ("low", "high")
    return next(s for s in range(99) if names[Mixture((1, 1), "response", s).speaker(0)] == speaker)


SPANS = ["token", 4, "word", "sentence", "response"]


@pytest.mark.parametrize("span", SPANS)
async def test_every_token_is_attributed_to_the_member_that_drew_it(span: Any) -> None:
    text, tokens, outcome = await collect(make_generation(make_members(), span))
    assert text == b"".join(token.token.bytes for token in tokens).decode()
    assert [token.position for token in tokens] == list(range(NUM_TOKENS))
    alphabets = dict(zip(("low", "high"), ALPHABETS, strict=True))
    assert all(token.token.bytes in alphabets[token.member] for token in tokens)
    assert outcome.finish_reason is FinishReason.MAX_TOKENS
    assert sum(usage.drawn_tokens for usage in outcome.usage) == NUM_TOKENS
    assert len({token.member for token in tokens}) == (1 if span == "response" else 2)


@pytest.mark.parametrize("span", SPANS)
async def test_a_lost_replica_changes_no_token(span: Any) -> None:
    undisturbed = await collect(make_generation(make_members(), span))
    members = make_members(low=[0, 5, 17, None], high=[9, 1, None])
    disturbed = await collect(make_generation(members, span))
    assert disturbed[:2] == undisturbed[:2]
    if span != "response":
        assert [usage.leases for usage in disturbed[2].usage] == [4, 3]


@pytest.mark.parametrize("span", SPANS)
async def test_members_of_different_vocabularies_survive_losses_too(span: Any) -> None:
    def members(**changes: Any) -> dict[str, ScriptedMember]:
        made = make_members(**changes)
        made["high"].info = replace(made["high"].info, vocabulary="other")
        return made

    undisturbed = await collect(make_generation(members(), span))
    disturbed = await collect(make_generation(members(low=[3, 8, None], high=[2, None]), span))
    assert disturbed[:2] == undisturbed[:2]


async def test_a_run_of_one_member_is_one_step() -> None:
    members = make_members()
    _, tokens, outcome = await collect(make_generation(members, "token"))
    speakers = [token.member for token in tokens]
    num_runs = 1 + sum(a != b for a, b in pairwise(speakers))
    assert sum(usage.seat.steps for usage in outcome.usage) == num_runs
    assert sum(usage.seat.forward_passes for usage in outcome.usage) == NUM_TOKENS


async def test_each_step_carries_only_news() -> None:
    members = make_members()
    await collect(make_generation(members, "token"))
    for member in members.values():
        told = sum(len(step.token_ids) for step in member.steps)
        assert told <= NUM_TOKENS


@pytest.mark.parametrize("span", SPANS)
async def test_a_stop_string_is_found_across_members_and_never_shown(span: Any) -> None:
    text, _, _ = await collect(make_generation(make_members(), span))
    stop = text[40:43]
    cut, tokens, outcome = await collect(make_generation(make_members(), span, stop=(stop,)))
    assert cut == text[: text.index(stop)]
    assert b"".join(token.token.bytes for token in tokens).decode() == cut
    assert outcome.finish_reason is FinishReason.STOP_STRING
    assert outcome.stop_string == stop


async def test_a_member_that_stays_lost_fails_the_request_by_name() -> None:
    members = make_members(low=[0] * (MAX_LOSSES_WITHOUT_PROGRESS + 2))
    with pytest.raises(Unavailable, match="'low' lost") as caught:
        await collect(make_generation(members))
    assert caught.value.reason == "MEMBER_UNAVAILABLE"
    assert [member.num_leases for member in members.values()] == [0, 0]


async def test_a_member_without_replicas_frees_the_others() -> None:
    members = make_members(low=[-1])
    with pytest.raises(Unavailable):
        await collect(make_generation(members))
    assert [member.num_leases for member in members.values()] == [0, 0]


async def test_a_refused_prompt_frees_every_lease() -> None:
    members = make_members()
    members["low"].refuse = InvalidRequest("PROMPT_TOO_LONG", "too long", field="prompt")
    with pytest.raises(InvalidRequest, match="too long"):
        await collect(make_generation(members))
    assert [member.num_leases for member in members.values()] == [0, 0]


async def test_leaving_early_frees_every_lease() -> None:
    members = make_members()
    async with aclosing(make_generation(members).updates()) as updates:
        async for update in updates:
            if update.tokens:
                break
        assert [member.num_leases for member in members.values()] == [1, 1]
    assert [member.num_leases for member in members.values()] == [0, 0]


async def test_a_reply_by_one_member_leases_that_one_only() -> None:
    members = make_members()
    _, tokens, outcome = await collect(make_generation(members, "response"))
    assert [usage.member for usage in outcome.usage] == [tokens[0].member]
    assert sum(member.num_leased for member in members.values()) == 1


class NarrowMember(ScriptedMember):
    """Its replicas take so many leases together; who asks for more waits."""

    def __init__(self, name: str, alphabet: bytes, room: int) -> None:
        super().__init__(name, alphabet)
        self.room = asyncio.Semaphore(room)

    async def lease(self, timeout_s: float, affinity: str = "") -> NarrowLease:
        """Hold a scripted replica, once there is room."""
        try:
            await asyncio.wait_for(self.room.acquire(), timeout_s)
        except TimeoutError:
            raise Overloaded("NO_FREE_REPLICA", "no room", retry_delay_s=1) from None
        self.num_leases += 1
        return NarrowLease(self, None)


class NarrowLease(ScriptedLease):
    """Makes room when it is given back."""

    async def release(self) -> None:
        """Give it back."""
        if self._is_held:
            assert isinstance(self.member, NarrowMember)
            self.member.room.release()
        await super().release()


async def test_who_waits_for_one_member_does_not_hold_another_that_others_need() -> None:
    """One member is full for a long time; replies by the other alone go on meanwhile."""
    members = {
        "high": NarrowMember("high", ALPHABETS[1], room=1),
        "low": NarrowMember("low", ALPHABETS[0], room=0),
    }
    both = asyncio.create_task(collect(make_generation(members, lease_timeout_s=8)))
    while not members["high"].num_leases:
        await asyncio.sleep(0)
    alone = make_generation(members, span="response", seed=seed_of("high"), lease_timeout_s=8)
    assert (await collect(alone))[0]
    assert not both.done()
    members["low"].room.release()
    assert (await both)[0]


async def test_all_that_want_two_narrow_members_get_them_in_the_end() -> None:
    members = {n: NarrowMember(n, ALPHABETS[0], room=1) for n in ("high", "low")}
    generations = [make_generation(members, seed=seed, lease_timeout_s=30) for seed in range(12)]
    replies = await asyncio.gather(*(collect(generation) for generation in generations))
    assert len({text for text, _, _ in replies}) == 12
    assert [member.num_leases for member in members.values()] == [0, 0]


async def test_a_member_that_stays_full_is_told_within_the_time_limit_and_holds_nobody() -> None:
    members = {
        "high": NarrowMember("high", ALPHABETS[1], room=1),
        "low": NarrowMember("low", ALPHABETS[0], room=0),
    }
    with pytest.raises(Overloaded, match="no room"):
        await collect(make_generation(members, lease_timeout_s=1.2))
    assert [member.num_leases for member in members.values()] == [0, 0]
    assert not members["high"].room.locked()
