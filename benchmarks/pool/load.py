"""Streams against a pool: what came, when, and what it cost the router."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median

from benchmarks.pool.pool import Counts, Pool
from deployments.bench.figures import Reply, firsts_ms, gaps_ms, percentile
from deployments.bench.streams import StreamClient
from deployments.bench.workload import Ask, Job

_NUM_CONNECTIONS = 8  # clients share them


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of one kind of wait, in milliseconds."""

    median_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, waits_ms: Sequence[float]) -> Quantiles:
        """The middle and the tail."""
        return cls(median(waits_ms), percentile(waits_ms, 0.95), percentile(waits_ms, 0.99))


@dataclass(frozen=True, slots=True)
class Phase:
    """Some streams at one time, each with one reply after another; counts are exact."""

    num_generations: int
    num_tokens: int
    wall_s: float
    router_cpu_s: float
    hosts_cpu_s: float
    client_cpu_s: float
    exchange_messages: int  # both ways, pings apart
    exchange_bytes: int
    steps: int
    client_messages: int
    client_bytes: int
    passes: int
    pass_sequences: int
    late_s: float  # by which engines ended their passes too late, summed
    first: Quantiles
    gap: Quantiles
    stream_gaps: Sequence[int]  # of each stream, between tokens of its replies
    stream_gaps_s: Sequence[float]  # summed; 0 where all tokens of a short reply came at once

    @property
    def router_utilisation(self) -> float:
        """Of one core; gRPC's threads may take it above 1."""
        return self.router_cpu_s / self.wall_s

    @property
    def stream_tokens_per_s(self) -> list[float]:
        """Of each stream, from the first token of a reply to its last."""
        return [n / s for n, s in zip(self.stream_gaps, self.stream_gaps_s, strict=True)]

    @property
    def fairness(self) -> float:
        """Jain's index of the streams' rates: 1 if all are equal, 1/n if one has everything."""
        rates = self.stream_tokens_per_s
        return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))

    @property
    def slowest_share(self) -> float:
        """The slowest stream's rate as a share of the median one's."""
        return min(self.stream_tokens_per_s) / median(self.stream_tokens_per_s)


def jobs_of() -> Iterator[Job]:
    """Short prompts, each with a seed of its own."""
    seed = 0
    while True:
        seed += 1
        yield Job(f"It is a truth, number {seed}, that a pool in possession of a load", seed)


async def run_phase(
    pool: Pool, ask: Ask, num_streams: int, num_rounds: int, num_tokens: int, jobs: Iterator[Job]
) -> Phase:
    """So many streams, each so many replies of so many tokens."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(StreamClient(pool.address))
            for _ in range(min(_NUM_CONNECTIONS, num_streams))
        ]
        before, begin_s = pool.counts(), time.perf_counter()
        streams = await asyncio.gather(
            *(
                clients[number % len(clients)].replies(
                    [next(jobs) for _ in range(num_rounds)], 1, num_tokens, ask
                )
                for number in range(num_streams)
            )
        )
        wall_s = time.perf_counter() - begin_s
        spent = pool.counts() - before
    return phase_of(streams, wall_s, spent)


def phase_of(streams: Sequence[Sequence[Reply]], wall_s: float, spent: Counts) -> Phase:
    """What the streams got for what was spent."""
    replies = [reply for stream in streams for reply in stream]
    exchange = spent.exchange
    return Phase(
        num_generations=len(replies),
        num_tokens=sum(len(reply.arrivals_s) for reply in replies),
        wall_s=wall_s,
        router_cpu_s=spent.router_cpu_s,
        hosts_cpu_s=spent.hosts_cpu_s,
        client_cpu_s=spent.client_cpu_s,
        exchange_messages=exchange.messages_sent + exchange.messages_received,
        exchange_bytes=exchange.bytes_sent + exchange.bytes_received,
        steps=exchange.steps_sent,
        client_messages=sum(reply.num_messages for reply in replies),
        client_bytes=sum(reply.num_bytes for reply in replies),
        passes=spent.engines.passes,
        pass_sequences=spent.engines.sequences,
        late_s=spent.engines.late_s,
        first=Quantiles.of(firsts_ms(replies)),
        gap=Quantiles.of(gaps_ms(replies)),
        stream_gaps=[len(gaps_ms(stream)) for stream in streams],
        stream_gaps_s=[sum(gaps_ms(stream)) / 1000 for stream in streams],
    )
