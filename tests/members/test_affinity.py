"""Which replica is preferred: the same for all who ask, spread evenly, and never a crowded one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.members.affinity import MAX_EXCESS, MIN_SLACK, preferred

EMPTY = {f"replica-{number}": 0 for number in range(4)}


@given(st.text(min_size=1), st.permutations(list(EMPTY)))
def test_all_routers_prefer_the_same_replica(key: str, order: list[str]) -> None:
    assert preferred(key, EMPTY) == preferred(key, dict.fromkeys(order, 0))


def test_conversations_spread_over_replicas() -> None:
    counts = Counter(preferred(str(number), EMPTY) for number in range(4000))
    assert all(850 < num < 1150 for num in counts.values())


def test_a_replica_that_leaves_or_comes_moves_only_its_own_conversations() -> None:
    keys = [str(number) for number in range(1000)]
    fewer = {name: 0 for name in EMPTY if name != "replica-2"}
    for key in keys:
        before = preferred(key, EMPTY)
        if before != "replica-2":
            assert preferred(key, fewer) == before


def test_without_a_key_or_a_replica_nobody_is_preferred() -> None:
    assert preferred("", EMPTY) is None
    assert preferred("a", {}) is None


@given(st.text(min_size=1), st.lists(st.integers(0, 50), min_size=2, max_size=6))
def test_a_crowded_replica_is_not_preferred(key: str, nums: list[int]) -> None:
    names = [f"replica-{number}" for number in range(len(nums))]
    first = preferred(key, dict.fromkeys(names, 0))
    assert first is not None
    num_leases = dict(zip(names, nums, strict=True))
    others = [num for name, num in num_leases.items() if name != first]
    is_crowded = num_leases[first] > MAX_EXCESS * sum(others) / len(others) + MIN_SLACK
    assert preferred(key, num_leases) == (None if is_crowded else first)


def test_the_only_replica_is_preferred_however_full() -> None:
    assert preferred("a", {"one": 1000}) == "one"
