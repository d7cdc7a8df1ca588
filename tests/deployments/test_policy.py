"""How many replicas a load asks for: bounds, bands, steps, and simulated loads over time."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.scaling import (
    TOO_LITTLE,
    TOO_MUCH,
    Demand,
    Goals,
    LoadPolicy,
    decide,
    num_wanted,
)

GOALS = Goals(target=8, max_calls=32)
demands = st.builds(
    Demand,
    load=st.floats(0, 1000),
    calls=st.floats(0, 1000),
    kv_fill=st.floats(0, 64),
    is_whole=st.booleans(),
)


def steady(load: float, num: int, calls: float | None = None, kv_fill: float = 0) -> int:
    """The decision while as many run as are aimed at."""
    demand = Demand(load, load if calls is None else calls, kv_fill)
    return decide(demand, GOALS, num_target=num, num_running=num)


@pytest.mark.parametrize(
    ("load", "num", "then"),
    [
        (8, 1, 1),
        (8.7, 1, 1),  # within the band
        (9, 1, 2),
        (100, 1, 2),  # twice, at most
        (100, 2, 4),
        (100, 13, 13),
        (12.9, 2, 2),  # one would have more than 80 % of 8
        (6.4, 2, 1),
        (1, 8, 4),  # half, at most
        (1, 1, 1),
    ],
)
def test_replicas_follow_the_load_in_steps_and_stay_within_a_band(
    load: float, num: int, then: int
) -> None:
    assert steady(load, num) == then


def test_leases_count_only_as_the_room_they_take() -> None:
    """In a mixture the rare member has as many leases as the frequent one, but little work."""
    rare = Demand(load=3, calls=30)
    frequent = Demand(load=27, calls=30)
    assert decide(rare, GOALS, num_target=1, num_running=1) == 1
    assert decide(frequent, GOALS, num_target=1, num_running=1) == 2
    assert decide(frequent, GOALS, num_target=2, num_running=2) == 4
    crowded = Demand(load=3, calls=40)  # eight of them wait
    assert decide(crowded, GOALS, num_target=1, num_running=1) == 2


def test_a_cache_nearly_full_asks_for_one_more() -> None:
    assert steady(1, 1, kv_fill=0.95) == 1  # within the band
    assert steady(1, 1, kv_fill=1.0) == 2
    assert steady(1, 2, kv_fill=2 * 0.7) == 2


def test_none_is_wanted_only_where_nobody_asks() -> None:
    assert steady(0, 1, calls=0) == 0
    assert steady(0, 1, calls=0.01) == 1
    assert decide(Demand(0, 0, is_whole=False), GOALS, num_target=3, num_running=3) == 3


@given(demands, st.integers(0, 64), st.integers(0, 64))
def test_every_decision_has_room_and_keeps_its_step(
    demand: Demand, num_target: int, num_running: int
) -> None:
    then = decide(demand, GOALS, num_target=num_target, num_running=num_running)
    assert then <= max(num_target, 2 * max(1, num_running))
    if then < num_target:
        assert demand.is_whole
        assert num_wanted(demand, GOALS) <= TOO_LITTLE * max(1, then) + 1e-9
        assert then >= min(num_target, num_running / 2) or demand.load == demand.calls == 0
    if demand.calls:
        assert then > 0 or num_target == 0
    if num_target <= then <= num_running and num_wanted(demand, GOALS) <= num_target:
        assert then == num_target


@given(st.floats(0.1, 500), st.integers(1, 64))
def test_a_steady_load_comes_to_rest(load: float, num: int) -> None:
    """No more than a few decisions, then none: the number that is enough stays enough."""
    for _ in range(12):
        num = steady(load, num)
    assert steady(load, num) == num
    assert TOO_MUCH * num >= load / 8
    assert num <= max(1, math.ceil(load / 8 / TOO_LITTLE))


def test_load_that_wavers_about_the_target_changes_nothing() -> None:
    num, changes = 2, 0
    for second in range(1000):
        then = steady(16 * (1 + 0.09 * math.sin(second / 7)), num)
        changes += then != num
        num = then
    assert changes == 0


@pytest.mark.parametrize(
    ("weights", "expected"), [((0.1, 0.9), (1, 8)), ((0.5, 0.5), (4, 4)), ((0.3, 0.7), (3, 6))]
)
def test_members_of_a_mixture_get_replicas_by_their_share_of_the_work(
    weights: tuple[float, float], expected: tuple[int, int]
) -> None:
    """64 streams: at each moment one member works for a stream, and both hold a lease."""
    nums = (1, 1)
    for _ in range(8):
        nums = tuple(  # type: ignore[assignment]
            decide(Demand(64 * w, 64), Goals(8, 128), num_target=n, num_running=n)
            for w, n in zip(weights, nums, strict=True)
        )
    assert nums == expected


def context(stats: dict[str, dict[str, float]] | None, calls: float, num: int) -> Any:
    return SimpleNamespace(
        aggregated_metrics=stats,
        total_num_requests=calls,
        current_num_replicas=num,
        target_num_replicas=num,
    )


def test_the_policy_reads_what_replicas_record() -> None:
    policy = LoadPolicy(target=8, stat="working", max_calls=32)
    stats = {"working": {"a": 8.0, "b": 12.0}, "kv_fill": {"a": 0.1, "b": 0.2}}
    assert policy(context(stats, 20, 2)) == (3, {})
    assert policy(context({"working": {"a": 0.5}}, 1, 2)) == (2, {})  # b has not told
    assert policy(context(None, 0, 1)) == (1, {})  # nor has anybody


def test_without_a_stat_the_policy_counts_calls() -> None:
    assert LoadPolicy(target=8)(context(None, 30, 2)) == (4, {})
    assert LoadPolicy(target=8)(context(None, 0, 2)) == (0, {})
