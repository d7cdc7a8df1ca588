"""What this process knows of Serve's replicas.

Serve copies the class of a request router by value, its module's variables with it: what all its
copies tell is kept here, where there is one of it in a process.
"""

from __future__ import annotations

import time

ADDRESS = "address"  # of a replica on the data plane, among what Serve tells of it

_SUSPICION_S = 30.0  # by then Serve has asked a frozen replica three times, and replaced it

_num_replicas: dict[str, int] = {}
_suspect_until_s: dict[str, float] = {}  # by data-plane address


def num_replicas(deployment: str) -> int | None:
    """How many replicas of a Serve deployment can be called; None: not known yet."""
    return _num_replicas.get(deployment)


def tell_replicas(deployment: str, num: int) -> None:
    """Serve has said so to a request router."""
    _num_replicas[deployment] = num


def suspect(address: str) -> None:
    """The replica that listens there has fallen silent: lease others for a while."""
    for other in tuple(_suspect_until_s):
        is_suspect(other)  # forgets those of long ago
    _suspect_until_s[address] = time.monotonic() + _SUSPICION_S


def is_suspect(address: str) -> bool:
    """Whether a replica was silent a short while ago."""
    until_s = _suspect_until_s.get(address)
    if until_s is not None and until_s < time.monotonic():
        _suspect_until_s.pop(address, None)
        return False
    return until_s is not None
