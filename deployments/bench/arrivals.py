"""When requests come in an open loop: independently of each other, at a rate. Pure."""

from __future__ import annotations

import random


def poisson(rate_per_s: float, num_requests: int, seed: int) -> list[float]:
    """Seconds from the beginning [num_requests], ascending: a Poisson process of that rate.

    The times between requests are exponential with mean 1 / rate; the same seed gives the same.
    """
    if rate_per_s <= 0:
        raise ValueError(f"got a rate of {rate_per_s} per second; expected one above 0")
    draws, now_s, times_s = random.Random(seed), 0.0, []
    for _ in range(num_requests):
        now_s += draws.expovariate(rate_per_s)
        times_s.append(now_s)
    return times_s
