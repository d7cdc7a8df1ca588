"""The faults: what is done to a cluster under a reply, and what makes it whole again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from benchmarks.faults.site import STRUCK, Site, Spot, await_that
from deployments.stages import MEMBER_PREFIX

_DUTY_S = 0.1  # stopped for so long, then running for as long
_SLOW_S = 4.0


class Notice(Enum):
    """Who notices a fault."""

    ROUTER = "router"  # it loses the replica
    CLIENT = "client"  # it loses the router
    NOBODY = "nobody"  # nothing is lost


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done while a reply is under way."""

    name: str
    words: str
    strike: Callable[[Site, Spot], None]
    heal: Callable[[Site, Spot], None]
    notice: Notice = Notice.ROUTER
    on_second_node: bool = False  # only where the reply is held there


def _kill(site: Site, spot: Spot) -> None:
    os.kill(spot.replica.pid, signal.SIGKILL)


def _freeze(site: Site, spot: Spot) -> None:
    os.kill(spot.replica.pid, signal.SIGSTOP)


def _cut(site: Site, spot: Spot) -> None:
    port = spot.address.rpartition(":")[2]
    command = ("ss", "--kill", "--tcp", "dport", "=", f":{port}")
    subprocess.run(command, capture_output=True, check=True)


def _kill_router(site: Site, spot: Spot) -> None:
    os.kill(spot.router.pid, signal.SIGKILL)


def _kill_node(site: Site, spot: Spot) -> None:
    site.kill_second_node()


def _drain(site: Site, spot: Spot) -> None:
    """Serve gives up the newest replica on the emptiest node: the second node's."""
    site.deploy(num_replicas=1)

    def is_leaving() -> bool:
        replicas = site.replicas(MEMBER_PREFIX + STRUCK)
        return not any(r.is_running for r in replicas if r.pid == spot.replica.pid)

    await_that(is_leaving)


def _slow(site: Site, spot: Spot) -> None:
    end_s = time.monotonic() + _SLOW_S
    while time.monotonic() < end_s:
        os.kill(spot.replica.pid, signal.SIGSTOP)
        time.sleep(_DUTY_S)
        os.kill(spot.replica.pid, signal.SIGCONT)
        time.sleep(_DUTY_S)


def _await_another_replica(site: Site, spot: Spot) -> None:
    with suppress(ProcessLookupError):
        os.kill(spot.replica.pid, signal.SIGKILL)
    site.await_whole(spot.replica)


def _await_another_router(site: Site, spot: Spot) -> None:
    site.await_whole(spot.router)


def _add_node(site: Site, spot: Spot) -> None:
    site.replace_second_node()
    site.await_whole(spot.replica)


def _deploy_all(site: Site, spot: Spot) -> None:
    site.deploy(num_replicas=2)
    site.await_whole(spot.replica)


def _nothing(site: Site, spot: Spot) -> None:
    site.await_whole()


FAULTS = (
    Fault("killed", "replica killed (SIGKILL)", _kill, _await_another_replica),
    Fault("node", "node killed (its raylet)", _kill_node, _add_node, on_second_node=True),
    Fault("frozen", "replica frozen (SIGSTOP)", _freeze, _await_another_replica),
    Fault("router", "router killed", _kill_router, _await_another_router, Notice.CLIENT),
    Fault("cut", "connection to the replica cut", _cut, _nothing),
    Fault(
        "drained",
        "replica drained by a smaller blend file",
        _drain,
        _deploy_all,
        Notice.NOBODY,
        on_second_node=True,
    ),
    Fault("slow", "replica at half speed for 4 s", _slow, _nothing, Notice.NOBODY),
)
