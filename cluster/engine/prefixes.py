"""Finding which sequences begin alike: a chain of hashes over whole pages of token ids.

The key of k pages is the hash of the key of k-1 pages and the ids of the k-th. Hashes may
collide, so whoever uses an answer compares the ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ROOT = 0  # key of the empty prefix


def chain(key: int, page_ids: Sequence[int]) -> int:
    """The key of a prefix lengthened by one page."""
    return hash((key, *page_ids))


def num_common(a: list[int], b: list[int]) -> int:
    """Length of the common prefix, by bisection over list comparisons, which run in C."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


class PrefixIndex:
    """Key of a prefix in whole pages -> the sequences that hold it."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._holders: dict[int, dict[int, None]] = {}

    def add(self, key: int, sequence: int) -> None:
        self._holders.setdefault(key, {})[sequence] = None

    def remove(self, key: int, sequence: int) -> None:
        holders = self._holders[key]
        del holders[sequence]
        if not holders:
            del self._holders[key]

    def deepest(
        self, ids: Sequence[int], num_pages: int, key: int, max_tokens: int
    ) -> tuple[int, Iterable[int]]:
        """Follow `ids` from the prefix named `key`, `num_pages` long, while someone holds it.

        Gives the number of pages of the longest prefix held, and its holders, newest first.
        """
        size = self._page_size
        while (num_pages + 1) * size <= max_tokens:
            next_key = chain(key, ids[num_pages * size : (num_pages + 1) * size])
            if next_key not in self._holders:
                break
            num_pages, key = num_pages + 1, next_key
        return num_pages, reversed(self._holders.get(key, {}))

    def as_sets(self) -> dict[int, set[int]]:
        """For integrity checks."""
        return {key: set(holders) for key, holders in self._holders.items()}
