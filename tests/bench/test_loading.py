"""A load is shared among processes without losing or doubling anything; streams count exactly."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from deployments.bench.figures import Reply
from deployments.bench.loading import Load, carry_out, shares_of
from deployments.bench.streams import StreamClient
from deployments.bench.workload import Ask, Job, Kind, Subject
from tests.rig import running

TOKENS = Subject(Ask("tokens", "tokens"), Kind.BY_TOKEN, {"austen": 0.6, "kjv": 0.4})
AUSTEN = Subject(Ask("austen", "tokens", "austen"), Kind.MEMBER, {"austen": 1.0})
KJV = Subject(Ask("kjv", "tokens", "kjv"), Kind.MEMBER, {"kjv": 1.0})
NUM_TOKENS = 5


def jobs(number: int) -> list[Job]:
    return [Job(f"It is a truth, number {seed}", seed) for seed in range(number)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "load",
    [
        Load([TOKENS], jobs(16), NUM_TOKENS, num_streams=16),
        Load([TOKENS], jobs(4), NUM_TOKENS),
        Load([AUSTEN, KJV], jobs(12), NUM_TOKENS, num_streams=6),
        Load([TOKENS], jobs(7), NUM_TOKENS, offsets_s=[0.1 * i for i in range(7)]),
        Load([TOKENS], jobs(4), NUM_TOKENS, anew=True),
    ],
)
def test_shares_of_a_load_are_the_load(load: Load, num_processes: int) -> None:
    shares = shares_of(load, num_processes)
    assert 1 <= len(shares) <= num_processes
    given = [job for share in shares for job in share.jobs]
    assert sorted(given, key=lambda job: job.seed) == load.jobs
    if load.offsets_s:
        when = {
            job: s for share in shares for job, s in zip(share.jobs, share.offsets_s, strict=True)
        }
        assert [when[job] for job in load.jobs] == load.offsets_s
    else:
        assert sum(share.num_streams for share in shares) == load.num_streams
        assert all(share.num_streams >= len(load.subjects) for share in shares)


async def test_counts_of_every_kind_of_load_are_exact() -> None:
    async with running() as rig, StreamClient(f"127.0.0.1:{rig.edge.port}") as client:

        async def of(load: Load) -> tuple[list[Reply], int]:
            before = rig.exchanges.counts.steps_sent
            replies = await carry_out(load, client)
            assert {len(reply.arrivals_s) for reply in replies} == {NUM_TOKENS}
            return replies, rig.exchanges.counts.steps_sent - before

        replies, num_steps = await of(Load([AUSTEN, KJV], jobs(6), NUM_TOKENS, num_streams=2))
        assert (len(replies), num_steps) == (6, 6)  # a reply by one member is one step
        assert {reply.num_passes for reply in replies} == {NUM_TOKENS}

        one, _ = await of(Load([TOKENS], jobs(1), NUM_TOKENS))
        runs = [TOKENS.speaker(0, position) for position in range(NUM_TOKENS)]
        _, num_steps = await of(Load([TOKENS], jobs(1), NUM_TOKENS))
        assert num_steps == 1 + sum(a != b for a, b in pairwise(runs))
        assert one[0].num_passes >= NUM_TOKENS

        replies, num_steps = await of(Load([TOKENS], jobs(3), NUM_TOKENS, anew=True))
        assert (len(replies), num_steps) == (3, 3 * NUM_TOKENS)  # each token is a request

        offsets_s = [0.0, 0.01, 0.02]
        replies, _ = await of(Load([TOKENS], jobs(3), NUM_TOKENS, offsets_s=offsets_s))
        gaps = [later.sent_s - earlier.sent_s for earlier, later in pairwise(replies)]
        assert gaps == pytest.approx([0.01, 0.01])  # when they should come, however late they do
        while rig.num_held() != (0, 0):  # leases end soon after their calls
            await asyncio.sleep(0.005)
