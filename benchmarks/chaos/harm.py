"""What is done to the cluster, and when: drawn from a seed, carried out on real processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from deployments.local import application_details
from deployments.stages import MEMBER_PREFIX, ROUTER


class Harm(Enum):
    """One kind of fault."""

    KILL_REPLICA = "replica killed"
    FREEZE_REPLICA = "replica frozen, then thawed"
    BLINK_REPLICA = "replica slow for a while"
    KILL_ROUTER = "router killed"
    KILL_NODE = "node killed, another one added"
    DRAIN_REPLICA = "replicas drained by a changed blend file"


WEIGHTS = {
    Harm.KILL_REPLICA: 5,
    Harm.FREEZE_REPLICA: 2,
    Harm.BLINK_REPLICA: 2,
    Harm.KILL_ROUTER: 3,
    Harm.KILL_NODE: 1,
    Harm.DRAIN_REPLICA: 1,
}
_GAP_S = (2.0, 6.0)  # of calm between two faults
_FROZEN_S = (3.0, 20.0)  # some shorter than what counts as dead, some longer
_NUM_BLINKS = 10
_BLINK_S = 0.2


@dataclass(frozen=True, slots=True)
class Deed:
    """One fault to come."""

    harm: Harm
    after_s: float  # of calm
    lasts_s: float  # for those that last
    choice: float  # in [0, 1): which of the processes at hand


def deeds(seed: int, seconds: float) -> list[Deed]:
    """Faults for about so long; the same for the same seed."""
    chance = random.Random(seed)
    planned: list[Deed] = []
    left_s = seconds
    while True:
        (harm,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        lasts = {Harm.FREEZE_REPLICA: chance.uniform(*_FROZEN_S)}
        deed = Deed(harm, chance.uniform(*_GAP_S), lasts.get(harm, 0.0), chance.random())
        left_s -= deed.after_s + deed.lasts_s
        if left_s < 0:
            return planned
        planned.append(deed)


@dataclass
class Harmer:
    """Carries out deeds in a thread of its own, one after another."""

    replace_node: Callable[[float], bool]  # kill one, add one; False where none can be spared
    drain: Callable[[], bool]  # apply another number of replicas
    done: Counter[Harm] = field(default_factory=Counter)
    missed: Counter[Harm] = field(default_factory=Counter)  # nobody was there to harm
    errors: list[str] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, planned: Sequence[Deed]) -> None:
        """All of them, or those before `stop`."""
        for deed in planned:
            if self._stopped.wait(deed.after_s):
                return
            try:
                was_done = self._do(deed)
            except Exception as error:  # what the cluster refuses must not end the harm
                self.errors.append(f"{deed.harm.value}: {type(error).__name__}: {error}")
                was_done = False
            (self.done if was_done else self.missed)[deed.harm] += 1

    def stop(self) -> None:
        """No more after the one under way."""
        self._stopped.set()

    def _do(self, deed: Deed) -> bool:
        match deed.harm:
            case Harm.KILL_NODE:
                return self.replace_node(deed.choice)
            case Harm.DRAIN_REPLICA:
                return self.drain()
            case Harm.KILL_ROUTER:
                return _signalled(_pick(_pids(ROUTER), deed.choice), signal.SIGKILL)
            case Harm.KILL_REPLICA:
                return _signalled(_pick(_pids(MEMBER_PREFIX), deed.choice), signal.SIGKILL)
            case Harm.FREEZE_REPLICA:
                return self._freeze(_pick(_pids(MEMBER_PREFIX), deed.choice), deed.lasts_s)
            case Harm.BLINK_REPLICA:
                pid = _pick(_pids(MEMBER_PREFIX), deed.choice)
                return all(self._freeze(pid, _BLINK_S, _BLINK_S) for _ in range(_NUM_BLINKS))

    def _freeze(self, pid: int | None, lasts_s: float, then_s: float = 0.0) -> bool:
        if not _signalled(pid, signal.SIGSTOP):
            return False
        self._stopped.wait(lasts_s)
        _signalled(pid, signal.SIGCONT)  # unless it was replaced meanwhile
        self._stopped.wait(then_s)
        return True


def _pids(prefix: str) -> list[int]:
    """Of Serve's running replicas, in an order that does not depend on Serve."""
    deployments: Any = application_details()["deployments"]
    return sorted(
        replica["pid"]
        for name, deployment in deployments.items()
        if name.startswith(prefix)
        for replica in deployment["replicas"]
        if replica.get("pid") and replica["state"].value == "RUNNING"
    )


def _pick(pids: Sequence[int], choice: float) -> int | None:
    return pids[int(choice * len(pids))] if pids else None


def _signalled(pid: int | None, signum: int) -> bool:
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
        return True
    return False
