"""Arrivals of an open loop: a Poisson process, the same for the same seed."""

from __future__ import annotations

import pytest
from scipy import stats

from deployments.bench.arrivals import poisson

RATE = 3.0


def test_times_between_requests_are_exponential_with_the_mean_asked_for() -> None:
    times_s = poisson(RATE, 4000, seed=7)
    gaps_s = [later - earlier for earlier, later in zip([0.0, *times_s], times_s, strict=False)]
    # A fixed seed: it passes or fails for ever. Of all seeds, one in a thousand would fail.
    assert stats.kstest(gaps_s, stats.expon(scale=1 / RATE).cdf).pvalue > 0.001
    # Independent of each other: so is the number in disjoint seconds, with its mean as variance.
    counts = [sum(second <= t < second + 1 for t in times_s) for second in range(1000)]
    spread = sum((count - RATE) ** 2 for count in counts) / RATE
    assert stats.chi2(1000).ppf(0.0005) < spread < stats.chi2(1000).ppf(0.9995)


def test_a_seed_gives_the_same_times_and_another_others() -> None:
    assert poisson(RATE, 20, seed=1) == poisson(RATE, 20, seed=1)
    assert poisson(RATE, 20, seed=1) != poisson(RATE, 20, seed=2)
    assert poisson(RATE, 20, seed=1)[:5] == poisson(RATE, 5, seed=1)


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match=f"got a rate of {rate}"):
        poisson(rate, 3, seed=1)
