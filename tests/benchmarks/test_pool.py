"""A simulated pool, small: all that was asked for arrives, in as many messages as it should."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from benchmarks.pool.device import Timing
from benchmarks.pool.load import jobs_of, run_phase
from benchmarks.pool.pool import ASKS, Pool, running_pool

NUM_STREAMS, NUM_REPLICAS, NUM_TOKENS = 8, 8, 24
FAST = Timing("a fast device", step_s=0.002, token_s=1e-6, sequence_s=1e-6)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with running_pool(FAST, NUM_REPLICAS) as pool:
        yield pool


@pytest.mark.parametrize("blend", ["replies", "tokens", "words", "means"])
def test_every_token_arrives_and_nothing_stays_held(pool: Pool, blend: str) -> None:
    phase = asyncio.run(run_phase(pool, ASKS[blend], NUM_STREAMS, 2, NUM_TOKENS, jobs_of()))
    assert phase.num_generations == 2 * NUM_STREAMS
    assert phase.num_tokens == 2 * NUM_STREAMS * NUM_TOKENS
    assert len(phase.stream_tokens_per_s) == NUM_STREAMS
    while pool.num_held != (0, 0):  # leases end soon after their calls; the time limit is the clock
        pass


def test_a_reply_by_one_member_is_one_step_and_at_most_a_message_per_pass(pool: Pool) -> None:
    phase = asyncio.run(run_phase(pool, ASKS["replies"], NUM_STREAMS, 1, NUM_TOKENS, jobs_of()))
    assert phase.steps == NUM_STREAMS
    # Of each reply: its opening and the answer, its step, its closing; then the passes' tokens.
    assert phase.exchange_messages <= phase.passes + 4 * NUM_STREAMS
    assert phase.pass_sequences == NUM_STREAMS * NUM_TOKENS  # the prompt rides with the first
    assert phase.client_messages <= NUM_STREAMS * (NUM_TOKENS + 2)  # its start and its outcome


def test_a_token_by_all_takes_one_pass_of_each_member(pool: Pool) -> None:
    phase = asyncio.run(run_phase(pool, ASKS["means"], NUM_STREAMS, 1, NUM_TOKENS, jobs_of()))
    assert phase.pass_sequences == 2 * NUM_STREAMS * NUM_TOKENS
    assert 2 * phase.num_tokens <= phase.steps <= 4 * phase.num_tokens


def test_the_transcript_is_told_once_however_long_it_is(pool: Pool) -> None:
    short, long = (
        asyncio.run(run_phase(pool, ASKS["tokens"], 2, 1, num_tokens, jobs_of()))
        for num_tokens in (150, 900)
    )
    assert long.exchange_bytes / long.num_tokens < short.exchange_bytes / short.num_tokens
    # Openings and closings apart, there are as many messages: a step and an answer for each run.
    assert long.exchange_messages / long.num_tokens < 2
    assert long.steps / long.num_tokens == pytest.approx(0.5, abs=0.05)
