"""Which rows of the key-value pool hold whose tokens.

Pure bookkeeping, no tensors. The pool is `num_pages` pages of `page_size` rows; row `r` of page
`p` is slot `p * page_size + r`. An entry is one sequence's cached state: the token ids whose rows
are valid, and the pages that hold them in order. Pages are counted by how many entries hold them,
and one held twice is never written: whoever wants to write into it first gets a copy. Entries of
running works are pinned; all others may be evicted, the least recently used first. A closed
sequence's entry stays until it is evicted, so that later sequences can share its prefix.

Sharing is exact to the token: whole pages are held in common, the rows of the last, partly matching
page are copied. What this module does not know: models, devices, works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from cluster.engine.pages import Pages
from cluster.engine.prefixes import ROOT, PrefixIndex, chain, num_common

_MAX_CANDIDATES = 64  # entries compared per lookup: bounds it when many share a system prompt


@dataclass(frozen=True, slots=True)
class Copy:
    """Rows to copy before anything is written: `num_rows` from slot `source` on to `target` on."""

    source: int
    target: int
    num_rows: int


@dataclass(slots=True)
class _Entry:
    ids: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)  # with those reserved, longer than `ids` needs
    keys: list[int] = field(default_factory=list)  # chain key of each whole page
    pinned: bool = False
    closed: bool = False

    @property
    def key(self) -> int:
        return self.keys[-1] if self.keys else ROOT


class PagePool:
    """Entries, pages and who holds what."""

    def __init__(self, num_pages: int, page_size: int, *, min_shared_tokens: int = 8) -> None:
        assert page_size > 0
        assert min_shared_tokens > 0
        self.num_pages = num_pages
        self.page_size = page_size
        self.min_shared_tokens = min_shared_tokens  # below this a copy costs more than it saves
        self.evicted: list[int] = []  # sequences whose state was evicted; the caller empties it
        self._entries: dict[int, _Entry] = {}
        self._idle: dict[int, None] = {}  # unpinned entries with pages, least recently used first
        self._pages = Pages(num_pages)
        self._prefixes = PrefixIndex(page_size)

    @property
    def num_free_pages(self) -> int:
        """Pages never used, or holding only evictable state."""
        return self._pages.num_unpinned

    @property
    def num_open_pages(self) -> int:
        """Pages that hold state of sequences not closed: what these lose if more comes."""
        return self._pages.num_open

    def holds(self, sequence: int) -> bool:
        """Whether the sequence was opened here, and not forgotten after its close."""
        return sequence in self._entries

    def num_cached(self, sequence: int) -> int:
        return len(self._entries[sequence].ids)

    def cached_ids(self, sequence: int) -> list[int]:
        """The ids whose rows are valid; not to be changed by the caller."""
        return self._entries[sequence].ids

    def pages(self, sequence: int) -> list[int]:
        """The pages in order, reserved ones included; not to be changed by the caller."""
        return self._entries[sequence].pages

    def is_pinned(self, sequence: int) -> bool:
        return self._entries[sequence].pinned

    def pinned_sequences(self) -> set[int]:
        return {sequence for sequence, entry in self._entries.items() if entry.pinned}

    def open(self, sequence: int) -> None:
        assert sequence not in self._entries, sequence
        self._entries[sequence] = _Entry()

    def close(self, sequence: int) -> None:
        """The sequence is over; its state stays as evictable cache."""
        self.unpin(sequence)
        entry = self._entries[sequence]
        for page in entry.pages:
            self._pages.close(page)
        entry.closed = True
        if not entry.ids:
            self.drop(sequence)

    def pin(self, sequence: int) -> None:
        """Protect the state from eviction while its work runs."""
        entry = self._entries[sequence]
        assert not entry.closed, sequence
        if not entry.pinned:
            entry.pinned = True
            self._idle.pop(sequence, None)
            for page in entry.pages:
                self._pages.pin(page)

    def unpin(self, sequence: int) -> None:
        """The state may be evicted again, after all that were idle before."""
        entry = self._entries[sequence]
        if entry.pinned:
            self.truncate(sequence, len(entry.ids))  # gives back what was reserved in vain
            entry.pinned = False
            for page in entry.pages:
                self._pages.unpin(page)
            if entry.pages:
                self._idle[sequence] = None

    def drop(self, sequence: int) -> None:
        """Forget the cached state; the sequence stays open unless it was closed."""
        self.truncate(sequence, 0)
        self.unpin(sequence)
        self._idle.pop(sequence, None)
        if self._entries[sequence].closed:
            del self._entries[sequence]

    def truncate(self, sequence: int, num_tokens: int) -> None:
        """Keep the first `num_tokens` rows, and no page beyond them."""
        entry, size = self._entries[sequence], self.page_size
        assert num_tokens <= len(entry.ids), (sequence, num_tokens)
        if num_tokens == 0 and entry.ids:
            self._prefixes.remove(ROOT, sequence)
            self._idle.pop(sequence, None)
        del entry.ids[num_tokens:]
        while len(entry.keys) > num_tokens // size:
            self._prefixes.remove(entry.keys.pop(), sequence)
        while len(entry.pages) > -(-num_tokens // size):
            self._release_page(entry, entry.pages.pop())

    def share(self, sequence: int, ids: list[int], max_tokens: int) -> tuple[int, list[Copy]]:
        """Lengthen the state towards `ids[:max_tokens]` by what other entries hold.

        The state must be a prefix of `ids`. Gives the number of tokens won and the copies to make.
        """
        entry, size = self._entries[sequence], self.page_size
        assert entry.pinned, sequence
        num_before = len(entry.ids)
        if max_tokens - num_before < self.min_shared_tokens:
            return 0, []
        source, num_shared = self._longest_match(sequence, entry, ids, max_tokens)
        if source is None or num_shared - num_before < self.min_shared_tokens:
            return 0, []
        self.truncate(sequence, len(entry.keys) * size)
        for page in source.pages[len(entry.pages) : num_shared // size]:
            self._hold_page(entry, page)
        copies = []
        if num_shared % size and self.num_free_pages:
            page = source.pages[num_shared // size]
            copies = [Copy(page * size, self._take_page(entry) * size, num_shared % size)]
        else:
            num_shared -= num_shared % size
        self.commit(sequence, ids[len(entry.ids) : num_shared])
        return max(0, num_shared - num_before), copies

    def reserve(self, sequence: int, num_tokens: int) -> list[Copy] | None:
        """Make room to write `num_tokens` rows after the cached ones, evicting as needed.

        Gives the copies to make first, or None if running works hold too many pages.
        """
        entry, size = self._entries[sequence], self.page_size
        assert entry.pinned, sequence
        num_new = max(0, -(-(len(entry.ids) + num_tokens) // size) - len(entry.pages))
        num_tail = len(entry.ids) % size
        tail = entry.pages[len(entry.ids) // size] if num_tail else None
        must_copy = tail is not None and self._pages.num_holders(tail) > 1
        if tail is not None and must_copy and num_new + 1 > self.num_free_pages:
            must_copy = (
                self._pages.num_pins(tail) > 1
            )  # else evict those who hold the page, and own it
            for victim in [] if must_copy else [s for s in self._idle if tail in self.pages(s)]:
                self._evict(victim)
        if num_new + must_copy > self.num_free_pages:
            return None
        copies = []
        if tail is not None and must_copy:
            assert entry.pages[-1] == tail, sequence
            entry.pages.pop()
            copies = [Copy(tail * size, self._take_page(entry) * size, num_tail)]
            self._release_page(entry, tail)
        for _ in range(num_new):
            self._take_page(entry)
        return copies

    def commit(self, sequence: int, ids: Sequence[int]) -> None:
        """The rows of these ids, which follow the cached ones, are now valid."""
        entry, size = self._entries[sequence], self.page_size
        if ids and not entry.ids:
            self._prefixes.add(ROOT, sequence)
        entry.ids.extend(ids)
        assert len(entry.ids) <= len(entry.pages) * size, sequence
        while len(entry.keys) < len(entry.ids) // size:
            begin = len(entry.keys) * size
            entry.keys.append(chain(entry.key, entry.ids[begin : begin + size]))
            self._prefixes.add(entry.key, sequence)

    def next_page_key(self, sequence: int, ids: list[int]) -> int | None:
        """Names the first page of `ids` that is not cached whole, if `ids` fills it."""
        entry, size = self._entries[sequence], self.page_size
        begin = len(entry.keys) * size
        return chain(entry.key, ids[begin : begin + size]) if begin + size <= len(ids) else None

    def _longest_match(
        self, sequence: int, entry: _Entry, ids: list[int], max_tokens: int
    ) -> tuple[_Entry | None, int]:
        """The other entry with the longest prefix in common with `ids[:max_tokens]`."""
        num_pages, holders = self._prefixes.deepest(ids, len(entry.keys), entry.key, max_tokens)
        begin = num_pages * self.page_size
        rest = ids[begin : min(begin + self.page_size, max_tokens)]
        best, num_best = None, 0
        for holder in islice(holders, _MAX_CANDIDATES):
            if holder != sequence:
                other = self._entries[holder]
                length = begin + num_common(other.ids[begin : begin + len(rest)], rest)
                if length > num_best:
                    best, num_best = other, length
        if best is None or best.ids[:begin] != ids[:begin]:  # nobody, or a hash collision
            return None, 0
        return best, num_best

    def _take_page(self, entry: _Entry) -> int:
        """A free page for the entry, by eviction if need be. The caller made sure there is one."""
        while not self._pages.has_free():
            self._evict(next(iter(self._idle)))
        page = self._pages.take()
        self._hold_page(entry, page)
        return page

    def _evict(self, sequence: int) -> None:
        self.drop(sequence)
        self.evicted.append(sequence)

    def _hold_page(self, entry: _Entry, page: int) -> None:
        entry.pages.append(page)
        self._pages.hold(page, pinned=entry.pinned)

    def _release_page(self, entry: _Entry, page: int) -> None:
        self._pages.release(page, pinned=entry.pinned, closed=entry.closed)

    def check_integrity(self) -> None:
        """Assert every invariant; tests call it after each operation."""
        prefixes: dict[int, set[int]] = {}
        for sequence, entry in self._entries.items():
            num_needed = -(-len(entry.ids) // self.page_size)
            assert len(entry.pages) >= num_needed, sequence
            assert entry.pinned or len(entry.pages) == num_needed, sequence
            assert (sequence in self._idle) == (bool(entry.pages) and not entry.pinned), sequence
            assert len(entry.keys) == len(entry.ids) // self.page_size, sequence
            assert not entry.closed or (entry.ids and not entry.pinned), sequence
            for key in [ROOT, *entry.keys] if entry.ids else []:
                prefixes.setdefault(key, set()).add(sequence)
        entries = self._entries.values()
        self._pages.check_integrity((entry.pages, entry.pinned, entry.closed) for entry in entries)
        assert prefixes == self._prefixes.as_sets()
        assert set(self._idle) <= set(self._entries)
