"""From arrival times to figures, by hand."""

from __future__ import annotations

import pytest

from cluster.members.exchange import ExchangeCounts
from deployments.bench.figures import CpuSeconds, Limits, Reply, Spread, figures_of, percentile

# A token after 0.5 s, then one each 0.1 s; and one after 0.2 s, then one after 0.4 s more.
QUICK = Reply(10.0, (10.5, 10.6, 10.7), num_passes=3, num_processed=12, num_messages=4)
SLOW = Reply(10.0, (10.2, 10.6), num_passes=2, num_processed=8, num_messages=2)


def test_rates_waits_and_counts_per_token() -> None:
    exchange = ExchangeCounts(4, 6, 100, 150, steps_sent=5)
    found = figures_of([QUICK, SLOW], 2.0, CpuSeconds(1.0, 0.5, 0.25), exchange)
    assert found.tokens_per_s == 2.5
    assert found.replies_per_s == 1.0
    assert found.first_ms == pytest.approx(350)
    assert found.first_p95_ms == pytest.approx(500)
    assert found.gap_ms == pytest.approx(100)
    assert found.gap_mean_ms == pytest.approx(200)
    assert (found.models_cpu_ms, found.router_cpu_ms, found.client_cpu_ms) == (200, 100, 50)
    assert (found.passes, found.processed) == (1.0, 4.0)
    assert (found.steps, found.messages, found.num_bytes) == (1.0, 2.0, 50.0)
    assert found.client_messages == 1.2


@pytest.mark.parametrize(
    ("limits", "good_per_s"),
    [
        (Limits(1000, 1000), 1.0),
        (Limits(400, 1000), 0.5),  # the quick one begins too late
        (Limits(1000, 200), 0.5),  # the slow one goes on too slowly
        (Limits(400, 200), 0.0),
    ],
)
def test_goodput_counts_replies_that_keep_both_limits(limits: Limits, good_per_s: float) -> None:
    found = figures_of([QUICK, SLOW], 2.0, CpuSeconds(), None, limits)
    assert found.good_per_s == good_per_s


def test_a_reply_of_one_token_has_no_time_between_tokens() -> None:
    found = figures_of([Reply(0.0, (0.3,), 1, 4)], 1.0, CpuSeconds())
    assert (found.gap_ms, found.gap_mean_ms, found.good_per_s) == (0.0, 0.0, 1.0)


def test_spread_and_percentile() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert [percentile([1, 2, 3, 4], share) for share in (0.0, 0.25, 0.5, 0.95)] == [1, 1, 2, 4]
