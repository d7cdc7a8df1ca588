"""On what and with what a run was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "ray", "grpcio")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a figure is worth depends on it."""

    processor: str
    num_cores: int
    memory_gib: int
    python: str
    packages: Mapping[str, str]  # versions of those that are there
    commit: str
    time: str  # ISO 8601, to the minute, UTC
    load_before: float  # runnable threads, averaged over a minute

    @classmethod
    def here(cls) -> Machine:
        """This one, now."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        return cls(
            processor=_cpu_model(),
            num_cores=len(os.sched_getaffinity(0)),
            memory_gib=round(memory),
            python=platform.python_version(),
            packages={name: version(name) for name in _PACKAGES if _is_there(name)},
            commit=_commit(),
            time=datetime.now(UTC).isoformat(timespec="minutes"),
            load_before=round(os.getloadavg()[0], 1),
        )

    def __str__(self) -> str:
        return ", ".join(
            (
                self.processor,
                f"{self.num_cores} cores",
                f"{self.memory_gib} GiB",
                f"Python {self.python}",
                *(f"{package} {number}" for package, number in self.packages.items()),
                f"commit {self.commit}",
                self.time[:10],
                f"load before {self.load_before:.1f}",
            )
        )


def machine_line() -> str:
    """Processor, memory, versions, commit, date, and how busy the machine was before."""
    return str(Machine.here())


def _is_there(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        command = ("git", "-C", str(Path(__file__).parent), *words)
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    is_changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        " and changes" if is_changed else ""
    )
