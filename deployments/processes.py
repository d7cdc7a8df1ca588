"""Processes that this one has started, directly or not, as Linux's /proc tells it.

Ray leaves its workers to find out by themselves that their node has gone; who stops a cluster and
says so wants to know.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process for as long as it lives: the system gives its number to others afterwards."""

    pid: int
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found[2] == self.start_ticks and found[1] != "Z"

    def kill(self) -> None:
        if self.is_alive:
            os.kill(self.pid, signal.SIGKILL)


def descendants() -> set[Process]:
    """Children, their children, and so on."""
    parents: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        found = _stat(int(folder.name))
        if found is not None:
            parents[int(folder.name)] = (found[0], found[2])
    family, found_any = {os.getpid()}, True
    while found_any:
        children = {pid for pid, (parent, _) in parents.items() if parent in family} - family
        family |= children
        found_any = bool(children)
    return {Process(pid, parents[pid][1]) for pid in family if pid != os.getpid()}


def await_end(processes: Iterable[Process], grace_s: float) -> None:
    """Wait until all of them are gone; kill those that are not within the grace."""
    deadline_s = time.monotonic() + grace_s
    left = [process for process in processes if process.is_alive]
    while left and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        left = [process for process in left if process.is_alive]
    for process in left:
        process.kill()


def _stat(pid: int) -> tuple[int, str, int] | None:
    """The parent's pid, the state, and when the process began; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return int(fields[1]), fields[0], int(fields[19])
