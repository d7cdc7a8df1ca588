"""On what and with what a run was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "ray", "grpcio")


def machine_line() -> str:
    """Processor, memory, versions, commit, date, and how busy the machine was before."""
    num_cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return ", ".join(
        (
            _cpu_model(),
            f"{num_cores} cores",
            f"{memory_gib:.0f} GiB",
            f"Python {platform.python_version()}",
            *(f"{package} {version(package)}" for package in _PACKAGES),
            f"commit {_commit()}",
            date.today().isoformat(),
            f"load before {os.getloadavg()[0]:.1f}",
        )
    )


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
