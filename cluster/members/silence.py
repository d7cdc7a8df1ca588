"""When a peer was last heard, and when its silence means that it is dead."""

from __future__ import annotations

import asyncio

# A frozen replica's replies wait for this time; one taken for dead that was only slow costs a
# prefill elsewhere, and no token.
SILENCE_LIMIT_S = 5.0
PING_INTERVAL_S = 2.0  # routers ping so often, and are answered: two chances within the limit


class Hearing:
    """Of one peer, from now on.

    Time in which this process stood still itself, and could hear nobody, is not the peer's silence.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()

    def hear(self) -> None:
        """Something was heard."""
        self._heard_s = self._loop.time()

    async def listen(self) -> bool:
        """Wait until it is time for a ping; False once the peer has been silent for too long."""
        began_s = self._loop.time()
        left_s = self._heard_s + SILENCE_LIMIT_S - began_s
        if left_s <= 0:
            return False
        wanted_s = min(PING_INTERVAL_S, left_s)
        await asyncio.sleep(wanted_s)
        now_s = self._loop.time()
        self._heard_s = min(now_s, self._heard_s + max(0.0, now_s - began_s - wanted_s))
        return True
