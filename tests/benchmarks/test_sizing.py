"""What a pool needs, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.pool.sizing import Costs, Demand, needs

COSTS = Costs(
    cpu_per_token_s=0.0002,
    cpu_per_generation_s=0.003,
    messages_per_token=0.5,
    bytes_per_token=40,
    client_bytes_per_token=60,
    exchange_resident_bytes=100_000,
    exchange_cpu_s_per_s=0.0005,
)
DEMAND = Demand(
    num_replicas=1000,
    streams_per_replica=10,
    stream_tokens_per_s=20,
    tokens_per_generation=200,
    leases_per_generation=2,
    num_cells=10,
    serve_lease_cpu_s=0.001,
    target_utilisation=0.55,
    health_check_period_s=10,
)


def test_routers_follow_from_processor_time() -> None:
    found = needs(COSTS, DEMAND)
    assert (found.tokens_per_s, found.generations_per_s) == (200_000, 1000)
    assert found.leases_per_s == 2000
    # 200 000 × 0.2 ms + 1000 × 3 ms + 2000 × 1 ms = 45 s a second, by 0.55 less 100 × 0.5 ms.
    assert found.num_routers == 90
    assert found.streams_per_router == pytest.approx(10_000 / 90)


def test_exchanges_follow_from_routers_and_cells() -> None:
    found = needs(COSTS, DEMAND)
    assert found.exchanges_per_router == 100
    assert found.num_exchanges == 9000
    assert found.exchange_bytes_per_router == 10_000_000
    assert found.pings_per_s == 9000  # one of each every two seconds
    assert found.health_checks_per_s == pytest.approx((1000 + 90) / 10 / 10)


def test_bytes_and_messages_follow_from_tokens() -> None:
    found = needs(COSTS, DEMAND)
    assert found.exchange_messages_per_s == 100_000
    assert (found.replica_bytes_per_s, found.client_bytes_per_s) == (8_000_000, 12_000_000)


def test_too_many_exchanges_for_one_router_are_refused() -> None:
    with pytest.raises(ValueError, match="more cells have fewer"):
        needs(replace(COSTS, exchange_cpu_s_per_s=0.01), DEMAND)
