"""Processes that this one has started, directly or not, as Linux's /proc tells it.

Ray leaves its workers to find out by themselves that their node has gone; who stops a cluster and
says so wants to know.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process for as long as it lives: the system gives its number to others afterwards."""

    pid: int
    start_ticks: int
    name: str

    @property
    def is_alive(self) -> bool:
        found = _stat(self.pid)
        return found is not None and found.start_ticks == self.start_ticks and found.state != "Z"

    def kill(self) -> None:
        if self.is_alive:
            os.kill(self.pid, signal.SIGKILL)


def descendants() -> set[Process]:
    """Children, their children, and so on."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    stats = {pid: stat for pid in pids if (stat := _stat(pid))}
    family, found_any = {os.getpid()}, True
    while found_any:
        children = {pid for pid, stat in stats.items() if stat.parent in family} - family
        family |= children
        found_any = bool(children)
    return {
        Process(pid, stats[pid].start_ticks, stats[pid].name)
        for pid in family
        if pid != os.getpid()
    }


def await_end(processes: Iterable[Process], grace_s: float) -> None:
    """Wait until all of them are gone; kill those that are not within the grace."""
    deadline_s = time.monotonic() + grace_s
    left = [process for process in processes if process.is_alive]
    while left and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        left = [process for process in left if process.is_alive]
    for process in left:
        process.kill()


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts; give it back to whoever wanted it."""
    wanted = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and wanted not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, wanted)


class _Stat(NamedTuple):
    name: str
    state: str
    parent: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    """What the system says of a process; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")  # the name between the brackets may hold anything
    fields = tail.split()
    return _Stat(head.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))
