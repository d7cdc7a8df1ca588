"""How many hold each page of the pool, and in what state they are.

A page is free when nobody holds it. Of its holders some are pinned, by works that run, and some are
open: their sequences are not closed. What this module does not know: tokens, who the holders are.
"""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """Counts per page, and the pages that are free."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_holders = [0] * num_pages
        self._num_pins = [0] * num_pages  # holders that are pinned
        self._num_pinned_pages = 0
        self._num_opens = [0] * num_pages  # holders that are not closed
        self._num_open_pages = 0

    @property
    def num_unpinned(self) -> int:
        """Pages that no running work holds."""
        return self.num_pages - self._num_pinned_pages

    @property
    def num_open(self) -> int:
        """Pages that hold state of sequences not closed."""
        return self._num_open_pages

    def has_free(self) -> bool:
        return bool(self._free)

    def take(self) -> int:
        """A page that nobody holds; there must be one."""
        return self._free.pop()

    def num_holders(self, page: int) -> int:
        return self._num_holders[page]

    def num_pins(self, page: int) -> int:
        return self._num_pins[page]

    def hold(self, page: int, *, pinned: bool) -> None:
        """One more holder, of an open sequence."""
        self._num_holders[page] += 1
        self._num_opens[page] += 1
        self._num_open_pages += self._num_opens[page] == 1
        if pinned:
            self.pin(page)

    def release(self, page: int, *, pinned: bool, closed: bool) -> None:
        """One holder less; without any, the page is free."""
        self._num_holders[page] -= 1
        if not closed:
            self.close(page)
        if pinned:
            self.unpin(page)
        if self._num_holders[page] == 0:
            self._free.append(page)

    def pin(self, page: int) -> None:
        self._num_pins[page] += 1
        self._num_pinned_pages += self._num_pins[page] == 1

    def unpin(self, page: int) -> None:
        self._num_pins[page] -= 1
        self._num_pinned_pages -= self._num_pins[page] == 0

    def close(self, page: int) -> None:
        """A holder's sequence is over; it goes on holding the page."""
        self._num_opens[page] -= 1
        self._num_open_pages -= self._num_opens[page] == 0

    def check_integrity(self, holders: Iterable[tuple[list[int], bool, bool]]) -> None:
        """Assert that the counts are those of the holders: (pages, pinned, closed) each."""
        num_holders, num_pins = [0] * self.num_pages, [0] * self.num_pages
        num_opens = [0] * self.num_pages
        for pages, pinned, closed in holders:
            assert len(set(pages)) == len(pages), pages
            for page in pages:
                num_holders[page] += 1
                num_pins[page] += pinned
                num_opens[page] += not closed
        assert num_holders == self._num_holders
        assert num_pins == self._num_pins
        assert self._num_pinned_pages == sum(num > 0 for num in num_pins)
        assert num_opens == self._num_opens
        assert self._num_open_pages == sum(num > 0 for num in num_opens)
        assert sorted(self._free) == [p for p in range(self.num_pages) if not num_holders[p]]
