"""Tokens of a reply go out together where one message for each would be all that a router does.

To read a message and write it again takes Python's gRPC 0.2 ms of a core, whatever is in it: more
than all else a token costs. So who has just sent a message waits for more tokens first, the longer
the more streams there are, until messages take no more than their share of the core. A few streams
get every token as it is drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress

from cluster.router.answers import Update

_MESSAGE_S = 0.0002  # measured, docs/pool.md: one read from a replica, one written to a client
_SHARE = 0.25  # of a core
_LONGEST_S = 0.25  # people see text move
_UNNOTICED_S = 0.01  # nobody waits for less
_MAX_AHEAD = 256  # updates that a slow reader may leave waiting; then the reply waits, too


def interval_s(num_streams: int) -> float:
    """How long a stream waits between its messages; 0 for few streams."""
    wanted = num_streams * _MESSAGE_S / _SHARE
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
            if update.tokens:
                ahead.hold_until(sent_s + interval_s(num_streams()))
        await reading  # for what it raised
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await reading


class _Ahead:
    """Reads on while the last message is being sent, and joins what has come since."""

    def __init__(self, updates: AsyncIterator[Update]) -> None:
        self._loop = asyncio.get_running_loop()
        self._updates = updates
        self._waiting: list[Update] = []
        self._is_over = False
        self._held_until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._may_take = asyncio.Event()
        self._has_room = asyncio.Event()

    async def read(self) -> None:
        try:
            async for update in self._updates:
                self._waiting.append(update)
                self._offer()
                while len(self._waiting) >= _MAX_AHEAD:
                    self._has_room.clear()
                    await self._has_room.wait()
        finally:
            self._is_over = True
            self._offer()

    async def take(self) -> Update | None:
        """All that has come, once it may be told; None after the last."""
        await self._may_take.wait()
        self._forget_timer()  # set again since, where a timer came early by its clock
        taken, self._waiting = self._waiting, []
        self._has_room.set()
        if not self._is_over:
            self._may_take.clear()
        return _joined(taken) if taken else None

    def hold_until(self, time_s: float) -> None:
        """Tell nothing before then but the end."""
        self._held_until_s = time_s
        if self._waiting:
            self._may_take.clear()
            self._offer()

    def _offer(self) -> None:
        """Let what waits be taken, now or as soon as it may be told."""
        if self._is_over or self._held_until_s <= self._loop.time():
            self._tell()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._held_until_s, self._tell)

    def _tell(self) -> None:
        self._forget_timer()
        self._may_take.set()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


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
