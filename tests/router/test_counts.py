"""What a token costs, counted exactly: forward passes, processed tokens, messages, bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from copy import copy
from itertools import pairwise

import pytest
import pytest_asyncio

from cluster.members.base import Prompt
from cluster.members.exchange import ExchangeCounts
from cluster.router.answers import Outcome, ReplyToken
from cluster.router.requests import GenerationRequest, Sampling, Stopping
from tests.rig import Rig, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_TOKENS = 64
MAX_BYTES_PER_TOKEN = 40  # both ways together, in `mixture/token`


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


async def reply(rig: Rig, blend: str, seed: int = 3) -> tuple[list[ReplyToken], Outcome]:
    request = GenerationRequest(
        blend,
        Prompt(text=f"It is a truth, number {seed},"),
        Sampling(seed=seed),
        Stopping(max_tokens=NUM_TOKENS, ignore_eos=True),
    )
    updates = [update async for update in rig.router.generate(request)]
    outcome = updates[-1].outcome
    assert outcome is not None
    return [token for update in updates for token in update.tokens], outcome


def num_runs(tokens: list[ReplyToken]) -> int:
    return 1 + sum(a.member != b.member for a, b in pairwise(tokens))


async def at_rest(rig: Rig) -> None:
    """Until nothing is held or waits to be sent; the test's time limit is the only clock."""
    exchanges = rig.exchanges._exchanges.values()
    while rig.num_held() != (0, 0) or any(exchange._is_waiting.is_set() for exchange in exchanges):
        await asyncio.sleep(0.001)


async def counted(rig: Rig, blend: str) -> tuple[list[ReplyToken], Outcome, ExchangeCounts]:
    """A reply, and what it added to the counts of the exchanges once they are at rest."""
    await at_rest(rig)
    before = copy(rig.exchanges.counts)
    tokens, outcome = await reply(rig, blend)
    await at_rest(rig)
    after = rig.exchanges.counts
    for name in ExchangeCounts.__slots__:
        setattr(after, name, getattr(after, name) - getattr(before, name))
    return tokens, outcome, after


async def test_token_mixtures_take_one_forward_pass_per_token(rig: Rig) -> None:
    tokens, outcome = await reply(rig, "tokens")
    speakers = outcome.usage
    # All but the first speaker prefill the prompt in a pass of their own, while the first speaks.
    assert sum(usage.seat.forward_passes for usage in speakers) == len(tokens) + len(speakers) - 1
    assert sum(usage.drawn_tokens for usage in speakers) == len(tokens) == NUM_TOKENS


async def test_every_member_processes_the_prompt_and_the_reply_once(rig: Rig) -> None:
    tokens, outcome = await reply(rig, "tokens", seed=4)
    for usage in outcome.usage:
        # What a member drew last it has not fed to itself, nor what others said since its last run.
        last = max(t.position for t in tokens if t.member == usage.member)
        assert usage.seat.processed_tokens + usage.seat.cached_tokens == (
            usage.seat.prompt_tokens + last
        )


async def test_a_run_of_one_member_is_one_step_and_at_most_one_message(rig: Rig) -> None:
    await reply(rig, "tokens", seed=5)  # opens the exchanges
    tokens, outcome, counts = await counted(rig, "tokens")
    assert counts.steps_sent == num_runs(tokens) == sum(u.seat.steps for u in outcome.usage)
    num_opens_and_closes = 2 * len(outcome.usage)
    assert counts.messages_sent <= num_runs(tokens) + num_opens_and_closes
    assert counts.messages_received <= len(tokens) + 2 * len(outcome.usage)


async def test_tokens_are_small_on_the_wire(rig: Rig) -> None:
    await reply(rig, "tokens", seed=5)
    tokens, _, counts = await counted(rig, "tokens")
    num_bytes = counts.bytes_sent + counts.bytes_received
    assert num_bytes <= MAX_BYTES_PER_TOKEN * len(tokens) + 2 * 200  # and the two openings


async def test_a_reply_by_one_member_is_one_step(rig: Rig) -> None:
    tokens, outcome, counts = await counted(rig, "replies")
    assert counts.steps_sent == 1
    (usage,) = outcome.usage
    assert usage.seat.forward_passes == len(tokens)


async def test_streams_that_run_together_share_messages_and_passes(rig: Rig) -> None:
    before = copy(rig.exchanges.counts)
    engines = [server.replica.engine._engine for server in rig.all_servers]  # type: ignore[attr-defined]
    passes_before = sum(engine.counts.forward_passes for engine in engines)
    replies = await asyncio.gather(*(reply(rig, "tokens", seed) for seed in range(16)))
    num_tokens = sum(len(tokens) for tokens, _ in replies)
    passes = sum(engine.counts.forward_passes for engine in engines) - passes_before
    received = rig.exchanges.counts.messages_received - before.messages_received
    assert num_tokens == 16 * NUM_TOKENS
    assert passes < num_tokens / 3
    assert received < num_tokens / 2
