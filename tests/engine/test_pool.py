"""The page pool against a naive model of rows, and its promises one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.engine import pool as pool_module
from cluster.engine import prefixes
from cluster.engine.pool import Copy, PagePool
from cluster.engine.prefixes import num_common

IDS = st.lists(st.integers(0, 1), max_size=14)


class PoolMachine(RuleBasedStateMachine):
    """Rows hold the whole prefix they were computed from, so a wrong row is seen at once."""

    @initialize(num_pages=st.integers(1, 9), page_size=st.integers(1, 4), least=st.integers(1, 3))
    def make(self, num_pages: int, page_size: int, least: int) -> None:
        self.pool = PagePool(num_pages, page_size, min_shared_tokens=least)
        self.rows: dict[int, tuple[int, ...]] = {}
        self.cached: dict[int, list[int]] = {}  # of open sequences
        self.pinned: set[int] = set()
        self.num_opened = 0

    def pick(self, data: st.DataObject, only_pinned: bool = False) -> int:
        choices = self.pinned if only_pinned else self.cached.keys()
        return data.draw(st.sampled_from(sorted(choices)))

    def slot(self, sequence: int, position: int) -> int:
        size = self.pool.page_size
        return self.pool.pages(sequence)[position // size] * size + position % size

    def copy(self, copies: list[Copy]) -> None:
        for copy in copies:
            assert copy.num_rows < self.pool.page_size
            for i in range(copy.num_rows):
                self.rows[copy.target + i] = self.rows.get(copy.source + i, ())

    def note_evictions(self) -> None:
        for sequence in self.pool.evicted:
            assert sequence not in self.pinned
            if sequence in self.cached:
                self.cached[sequence] = []
        self.pool.evicted.clear()

    @rule()
    def open(self) -> None:
        self.num_opened += 1
        self.pool.open(self.num_opened)
        self.cached[self.num_opened] = []

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.pool.pin(sequence)
        self.pinned.add(sequence)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        sequence = self.pick(data, only_pinned=True)
        self.pool.unpin(sequence)
        self.pinned.remove(sequence)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data(), new_ids=IDS, is_computed=st.booleans())
    def extend(self, data: st.DataObject, new_ids: list[int], is_computed: bool) -> None:
        sequence = self.pick(data, only_pinned=True)
        ids = self.cached[sequence] + new_ids
        num_won, copies = self.pool.share(sequence, ids, max(len(ids) - 1, 0))
        self.copy(copies)
        num_cached = self.pool.num_cached(sequence)
        assert num_won in (0, num_cached - len(self.cached[sequence]))
        self.cached[sequence] = ids[:num_cached]
        copies_or_none = self.pool.reserve(sequence, len(ids) - num_cached)
        self.note_evictions()
        if copies_or_none is not None:
            self.copy(copies_or_none)
            for position in range(num_cached, len(ids)):
                self.rows[self.slot(sequence, position)] = tuple(ids[: position + 1])
            if is_computed:
                self.pool.commit(sequence, ids[num_cached:])
                self.cached[sequence] = ids

    @precondition(lambda self: len(self.pinned) == 1)
    @rule(data=st.data(), num=st.integers(0, 40))
    def extend_the_only_one(self, data: st.DataObject, num: int) -> None:
        sequence = self.pick(data, only_pinned=True)
        num_rows = self.pool.num_pages * self.pool.page_size
        copies = self.pool.reserve(sequence, num)
        self.note_evictions()
        assert (copies is not None) == (len(self.cached[sequence]) + num <= num_rows)
        self.copy(copies or [])

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        num = data.draw(st.integers(0, len(self.cached[sequence])))
        self.pool.truncate(sequence, num)
        del self.cached[sequence][num:]

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.pool.drop(sequence)
        self.cached[sequence] = []
        self.pinned.discard(sequence)

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.pool.close(sequence)
        del self.cached[sequence]
        self.pinned.discard(sequence)

    @invariant()
    def every_cached_row_is_right(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity()
        for sequence, ids in self.cached.items():
            assert self.pool.cached_ids(sequence) == ids
            for position in range(len(ids)):
                assert self.rows[self.slot(sequence, position)] == tuple(ids[: position + 1])


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def fill(pool: PagePool, sequence: int, ids: list[int]) -> None:
    """A new sequence with these rows, left idle."""
    pool.open(sequence)
    pool.pin(sequence)
    assert pool.reserve(sequence, len(ids)) is not None
    pool.commit(sequence, ids)
    pool.unpin(sequence)


def test_whole_pages_are_held_in_common_and_the_tail_is_copied() -> None:
    pool = PagePool(8, 4, min_shared_tokens=1)
    fill(pool, 1, [1, 2, 3, 4, 5, 6, 7])
    pool.open(2)
    pool.pin(2)
    num_won, copies = pool.share(2, [1, 2, 3, 4, 5, 6, 9, 9], 7)
    assert num_won == 6
    assert pool.pages(2)[0] == pool.pages(1)[0]
    assert copies == [Copy(pool.pages(1)[1] * 4, pool.pages(2)[1] * 4, 2)]
    pool.check_integrity()


def test_sharing_stops_at_the_asked_limit() -> None:
    pool = PagePool(8, 4, min_shared_tokens=1)
    fill(pool, 1, [1, 2, 3, 4, 5, 6, 7])
    pool.open(2)
    pool.pin(2)
    assert pool.share(2, [1, 2, 3, 4, 5, 6, 7], 5)[0] == 5


def test_a_few_common_tokens_are_not_worth_a_copy() -> None:
    pool = PagePool(8, 4, min_shared_tokens=4)
    fill(pool, 1, [1, 2, 3, 9])
    pool.open(2)
    pool.pin(2)
    assert pool.share(2, [1, 2, 3, 4, 5, 6], 5) == (0, [])


def test_a_page_held_twice_is_copied_before_it_is_written() -> None:
    pool = PagePool(8, 4, min_shared_tokens=1)
    fill(pool, 1, [1, 2, 3, 4, 5])
    pool.open(2)
    pool.pin(2)
    pool.share(2, [1, 2, 3, 4, 6], 4)
    shared = pool.pages(2)[0]
    pool.truncate(2, 3)
    copies = pool.reserve(2, 1)
    assert copies == [Copy(shared * 4, pool.pages(2)[0] * 4, 3)]
    assert pool.pages(2)[0] != shared == pool.pages(1)[0]


def test_the_least_recently_used_sequence_is_evicted_first() -> None:
    pool = PagePool(3, 4)
    for sequence in (1, 2, 3):
        fill(pool, sequence, [sequence] * 4)
    pool.pin(1)
    pool.unpin(1)  # used again
    fill(pool, 4, [4] * 5)
    assert pool.evicted == [2, 3]
    assert [pool.num_cached(sequence) for sequence in (1, 2, 3, 4)] == [4, 0, 0, 5]


def test_closed_sequences_are_evicted_like_others_and_then_forgotten() -> None:
    pool = PagePool(2, 4)
    fill(pool, 1, [1] * 4)
    fill(pool, 2, [2] * 4)
    pool.close(1)
    fill(pool, 3, [3] * 4)
    assert pool.evicted == [1]
    assert not pool.holds(1)


def test_pinned_pages_are_never_taken() -> None:
    pool = PagePool(2, 4)
    pool.open(1)
    pool.pin(1)
    assert pool.reserve(1, 5) == []
    pool.open(2)
    pool.pin(2)
    assert pool.reserve(2, 1) is None
    assert pool.num_free_pages == 0


def test_pages_reserved_in_vain_come_back() -> None:
    pool = PagePool(2, 4)
    pool.open(1)
    pool.pin(1)
    pool.reserve(1, 8)
    pool.unpin(1)
    assert pool.num_free_pages == 2
    pool.check_integrity()


def test_prefixes_of_equal_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pool_module, prefixes):
        monkeypatch.setattr(module, "chain", lambda key, ids: key + 1)
    pool = PagePool(8, 2, min_shared_tokens=1)
    fill(pool, 1, [1, 2, 3, 4])
    pool.open(2)
    pool.pin(2)
    assert pool.share(2, [5, 6, 3, 4, 7], 4) == (0, [])


def test_an_idle_holder_makes_way_when_there_is_no_page_for_a_copy() -> None:
    pool = PagePool(2, 4, min_shared_tokens=1)
    fill(pool, 1, [1, 2, 3, 4, 5])
    pool.open(2)
    pool.pin(2)
    assert pool.share(2, [1, 2, 3, 4, 6], 4) == (4, [])
    pool.truncate(2, 3)
    assert pool.reserve(2, 5) == []
    assert pool.evicted == [1]


def test_num_common_counts_equal_leading_items() -> None:
    assert num_common([], [1]) == 0
    assert num_common([1, 2, 3], [1, 2, 3]) == 3
    for num in range(70):
        assert num_common([0] * 70, [0] * num + [1] * 9) == num
