"""From arrival times to figures: per round first, then the median and the range over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from cluster.members.exchange import ExchangeCounts


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply as its reader saw it. Counts are of the one sequence, over all its members."""

    sent_s: float  # when it was asked for; in an open loop, when it should have been
    arrivals_s: tuple[float, ...]  # one per token; tokens of one message arrive together
    num_passes: int  # forward passes that it took part in
    num_processed: int  # tokens fed through models: prompt, catch-up, its own
    num_cached: int = 0  # tokens that another sequence's cache held
    num_messages: int = 0  # from the router
    num_bytes: int = 0  # of these

    @property
    def first_ms(self) -> float:
        """From the request to the first token."""
        return 1000 * (self.arrivals_s[0] - self.sent_s)

    @property
    def mean_gap_ms(self) -> float:
        """Between its tokens; 0 for a reply of one token."""
        num_gaps = len(self.arrivals_s) - 1
        return 1000 * (self.arrivals_s[-1] - self.arrivals_s[0]) / num_gaps if num_gaps else 0.0


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Processor time, of all threads; a rival is one process, counted as models."""

    models: float = 0.0
    router: float = 0.0
    client: float = 0.0

    def __sub__(self, other: CpuSeconds) -> CpuSeconds:
        return CpuSeconds(
            self.models - other.models, self.router - other.router, self.client - other.client
        )

    def scaled(self, factor: float) -> CpuSeconds:
        """So many times that."""
        return CpuSeconds(self.models * factor, self.router * factor, self.client * factor)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader is content with."""

    first_ms: float = 1000.0  # to the first token
    gap_ms: float = 100.0  # between tokens, on average over the reply

    def is_good(self, reply: Reply) -> bool:
        """Whether a reply keeps both."""
        return reply.first_ms <= self.first_ms and reply.mean_gap_ms <= self.gap_ms


@dataclass(frozen=True, slots=True)
class Figures:
    """One case in one round."""

    tokens_per_s: float
    replies_per_s: float
    good_per_s: float  # replies within the limits: goodput
    first_ms: float  # to the first token, median
    first_p95_ms: float
    gap_ms: float  # between a reply's tokens, median
    gap_mean_ms: float
    gap_p95_ms: float
    models_cpu_ms: float  # per output token, above what an idle cluster uses
    router_cpu_ms: float
    client_cpu_ms: float
    passes: float  # per output token
    processed: float  # tokens, per output token
    cached: float  # tokens, per output token
    steps: float  # that the router asked of replicas, per output token
    messages: float  # between router and replicas, both ways, per output token
    num_bytes: float  # of these, per output token
    client_messages: float  # from the router to its clients, per output token


def figures_of(
    replies: Sequence[Reply],
    wall_s: float,
    cpu: CpuSeconds,
    exchange: ExchangeCounts | None = None,
    limits: Limits | None = None,
) -> Figures:
    """What one case did in one round."""
    limits, exchange = limits or Limits(), exchange or ExchangeCounts()
    num_tokens = sum(len(reply.arrivals_s) for reply in replies)
    firsts = firsts_ms(replies)
    gaps = gaps_ms(replies) or [0.0]  # replies of one token have none
    return Figures(
        tokens_per_s=num_tokens / wall_s,
        replies_per_s=len(replies) / wall_s,
        good_per_s=sum(map(limits.is_good, replies)) / wall_s,
        first_ms=median(firsts),
        first_p95_ms=percentile(firsts, 0.95),
        gap_ms=median(gaps),
        gap_mean_ms=fmean(gaps),
        gap_p95_ms=percentile(gaps, 0.95),
        models_cpu_ms=1000 * cpu.models / num_tokens,
        router_cpu_ms=1000 * cpu.router / num_tokens,
        client_cpu_ms=1000 * cpu.client / num_tokens,
        passes=sum(reply.num_passes for reply in replies) / num_tokens,
        processed=sum(reply.num_processed for reply in replies) / num_tokens,
        cached=sum(reply.num_cached for reply in replies) / num_tokens,
        steps=exchange.steps_sent / num_tokens,
        messages=(exchange.messages_sent + exchange.messages_received) / num_tokens,
        num_bytes=(exchange.bytes_sent + exchange.bytes_received) / num_tokens,
        client_messages=sum(reply.num_messages for reply in replies) / num_tokens,
    )


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The middle and the ends."""
        return cls(median(values), min(values), max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def firsts_ms(replies: Sequence[Reply]) -> list[float]:
    """From each request to its first token."""
    return [reply.first_ms for reply in replies]


def gaps_ms(replies: Sequence[Reply]) -> list[float]:
    """Between the tokens of each reply."""
    return [
        1000 * (later - earlier)
        for reply in replies
        for earlier, later in pairwise(reply.arrivals_s)
    ]
