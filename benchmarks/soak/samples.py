"""What a process holds, as Linux's /proc tells it, and which processes a cluster has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.local import application_details
from deployments.processes import descendants

_CONTROLLER = "ray::ServeController"
_RAY_CORE = ("gcs_server", "raylet")
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds at one moment."""

    private_mib: float  # anonymous memory, also swapped out; mapped files come and go by themselves
    num_files: int  # open descriptors
    num_threads: int


def held_by(pid: int) -> Held:
    """Of a process that lives; raises OSError for one that does not."""
    fields = dict(_fields(Path(f"/proc/{pid}/status").read_text()))
    private_kib = sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap"))
    num_files = len(os.listdir(f"/proc/{pid}/fd"))
    return Held(private_kib * 1024 / _MIB, num_files, int(fields["Threads"]))


def cluster_processes() -> Mapping[str, int]:
    """By name: this client with Ray's driver in it, Ray's core, Serve's controller, replicas."""
    found = {"client": os.getpid()}
    for process in descendants():
        if process.name in _RAY_CORE:
            found[process.name] = process.pid
        elif _title(process.pid).startswith(_CONTROLLER):
            found["controller"] = process.pid
    for name, deployment in application_details()["deployments"].items():
        replicas = sorted(deployment["replicas"], key=lambda replica: str(replica["replica_id"]))
        for number, replica in enumerate(replicas, start=1):
            found[f"{name} {number}" if len(replicas) > 1 else name] = replica["pid"]
    return found


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
