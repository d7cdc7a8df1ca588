"""From arrival times to figures: per round first, then the median and the range over rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply as its reader saw it. Counts are of the one sequence, over all its members."""

    sent_s: float
    arrivals_s: tuple[float, ...]  # one per token; tokens of one message arrive together
    num_passes: int  # forward passes that it took part in
    num_processed: int  # tokens fed through models: prompt, catch-up, its own
    num_cached: int = 0  # tokens that another sequence's cache held
    num_messages: int = 0  # from the router
    num_bytes: int = 0  # of these


@dataclass(frozen=True, slots=True)
class CpuSeconds:
    """Processor time, of all threads; a rival is one process, counted as models."""

    models: float
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
class Figures:
    """One case in one round."""

    tokens_per_s: float
    first_ms: float  # to the first token, median
    first_p95_ms: float
    gap_ms: float  # between a reply's tokens, median
    gap_p95_ms: float
    models_cpu_ms: float  # per output token, above what an idle cluster uses
    router_cpu_ms: float
    client_cpu_ms: float
    passes: float  # per output token
    processed: float  # tokens, per output token
    cached: float  # tokens, per output token


def figures_of(replies: Sequence[Reply], wall_s: float, cpu: CpuSeconds) -> Figures:
    """What one case did in one round."""
    num_tokens = sum(len(reply.arrivals_s) for reply in replies)
    firsts = firsts_ms(replies)
    gaps = gaps_ms(replies)
    return Figures(
        tokens_per_s=num_tokens / wall_s,
        first_ms=median(firsts),
        first_p95_ms=percentile(firsts, 0.95),
        gap_ms=median(gaps),
        gap_p95_ms=percentile(gaps, 0.95),
        models_cpu_ms=1000 * cpu.models / num_tokens,
        router_cpu_ms=1000 * cpu.router / num_tokens,
        client_cpu_ms=1000 * cpu.client / num_tokens,
        passes=sum(reply.num_passes for reply in replies) / num_tokens,
        processed=sum(reply.num_processed for reply in replies) / num_tokens,
        cached=sum(reply.num_cached for reply in replies) / num_tokens,
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
    return [1000 * (reply.arrivals_s[0] - reply.sent_s) for reply in replies]


def gaps_ms(replies: Sequence[Reply]) -> list[float]:
    """Between the tokens of each reply."""
    return [
        1000 * (later - earlier)
        for reply in replies
        for earlier, later in pairwise(reply.arrivals_s)
    ]
