"""A line through samples, judged: growth is told from noise, and noise from flatness."""

from __future__ import annotations

import random

import pytest

from benchmarks.soak.flatness import Allowance, trend_of

FEW = Allowance(share=0.02, amount=4.0)


def samples(slope_per_s: float, noise: float, level: float = 100.0) -> list[tuple[float, float]]:
    """Twenty minutes, every three seconds."""
    chance = random.Random(7)
    times = [3.0 * number for number in range(400)]
    return [(t, level + slope_per_s * t + chance.gauss(0, noise)) for t in times]


def test_a_line_is_found_exactly() -> None:
    trend = trend_of(samples(0.01, noise=0), warm_up_s=300)
    assert trend.slope_per_s == pytest.approx(0.01)
    assert trend.duration_s == 1197 - 300
    assert trend.growth == pytest.approx(8.97)
    assert trend.noise == pytest.approx(0, abs=1e-6)


def test_noise_about_a_level_is_flat() -> None:
    assert trend_of(samples(0, noise=3), warm_up_s=300).is_flat(FEW)


def test_growth_beyond_the_allowance_is_not_flat_even_under_noise() -> None:
    assert not trend_of(samples(0.02, noise=3), warm_up_s=300).is_flat(FEW)


def test_what_grows_within_the_allowance_is_flat() -> None:
    assert trend_of(samples(0.002, noise=0.5), warm_up_s=300).is_flat(FEW)


def test_the_larger_of_share_and_amount_counts() -> None:
    trend = trend_of(samples(0.02, noise=0, level=2000), warm_up_s=300)  # 18 of 2,012
    assert trend.is_flat(FEW)
    assert not trend.is_flat(Allowance(share=0.001, amount=4.0))


def test_noise_that_hides_the_allowance_is_not_flat() -> None:
    assert not trend_of(samples(0, noise=300), warm_up_s=300).is_flat(FEW)


def test_growth_during_the_warm_up_is_forgiven() -> None:
    early = [(time_s, min(time_s, 300.0)) for time_s, _ in samples(0, noise=0)]
    assert trend_of(early, warm_up_s=300).growth == pytest.approx(0, abs=1e-6)


def test_shrinking_is_flat() -> None:
    assert trend_of(samples(-0.05, noise=0.1), warm_up_s=300).is_flat(FEW)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples after the warm-up"):
        trend_of([(0, 1), (10, 1), (20, 1)], warm_up_s=10)
