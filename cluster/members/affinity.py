"""Which replica a conversation returns to: the one that holds its beginning, while it has room.

By rendezvous hashing, so that every router finds the same replica without asking anybody, and a
replica that comes or goes moves only its own share of the conversations. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from statistics import fmean

# A preferred replica may hold so many times the leases that the others hold on average, and so
# many more: beyond that, waiting for a full batch costs more than the prompt's beginning.
MAX_EXCESS = 1.5
MIN_SLACK = 2


def preferred(key: str, num_leases: Mapping[str, int]) -> str | None:
    """The replica for a conversation, among those named with the leases they hold.

    None without a key, without replicas, or where the preferred one is much fuller than the others.
    """
    if not key or not num_leases:
        return None
    name = max(num_leases, key=lambda replica: _weight(key, replica))
    others = [num for replica, num in num_leases.items() if replica != name]
    most = MAX_EXCESS * fmean(others) + MIN_SLACK if others else num_leases[name]
    return name if num_leases[name] <= most else None


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{key} {replica}".encode(), digest_size=8).digest()
