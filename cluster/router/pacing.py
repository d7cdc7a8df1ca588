"""Tokens of a reply go out together where one message for each would be all that a router does.

Writing a message to a client takes 0.2 ms of a core in Python's gRPC, whatever is in it: more than
all else a token costs. So who has just sent a message waits for more tokens first, the longer the
more streams there are, until writing takes no more than its share of the core. A few streams get
every token as it is drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress

from cluster.router.answers import Update

_WRITE_S = 0.0002  # measured; docs/pool.md
_SHARE = 0.25  # of a core, for writing to clients
_LONGEST_S = 0.25  # people see text move
_UNNOTICED_S = 0.01  # nobody waits for less
_MAX_AHEAD = 256  # updates that a slow reader may leave waiting; then the reply waits, too


def interval_s(num_streams: int) -> float:
    """How long a stream waits between its messages; 0 for few streams."""
    wanted = num_streams * _WRITE_S / _SHARE
    return 0.0 if wanted < _UNNOTICED_S else min(wanted, _LONGEST_S)


async def paced(
    updates: AsyncIterator[Update], num_streams: Callable[[], int]
) -> AsyncGenerator[Update, None]:
    """The updates, joined as they are; until the first token and for the end nothing waits."""
    loop = asyncio.get_running_loop()
    ahead = _Ahead(updates)
    reading = asyncio.create_task(ahead.read())
    try:
        while update := await ahead.take():
            sent_s = loop.time()
            yield update
            if update.tokens and not ahead.is_over:
                left_s = sent_s + interval_s(num_streams()) - loop.time()
                if left_s > 0:
                    await ahead.until_over(left_s)
        await reading  # for what it raised
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await reading


class _Ahead:
    """Reads on while the last message is being sent, and joins what has come since."""

    def __init__(self, updates: AsyncIterator[Update]) -> None:
        self.is_over = False
        self._updates = updates
        self._waiting: list[Update] = []
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._over = asyncio.Event()

    async def read(self) -> None:
        try:
            async for update in self._updates:
                self._waiting.append(update)
                self._has_news.set()
                while len(self._waiting) >= _MAX_AHEAD:
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            self.is_over = True
            self._over.set()
            self._has_news.set()

    async def take(self) -> Update | None:
        """All that has come; None after the last."""
        await self._has_news.wait()
        taken, self._waiting = self._waiting, []
        self._has_room.set()
        if not self.is_over:
            self._has_news.clear()
        return _joined(taken) if taken else None

    async def until_over(self, most_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), most_s)


def _joined(updates: list[Update]) -> Update:
    if len(updates) == 1:
        return updates[0]
    return Update(
        text="".join(update.text for update in updates),
        tokens=[token for update in updates for token in update.tokens],
        outcome=updates[-1].outcome,
        notices=tuple(notice for update in updates for notice in update.notices),
        start=updates[0].start,
    )
