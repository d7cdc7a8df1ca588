"""How much of this machine there is to use; containers count as machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.spec import PlacedSpec

_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is Arm's
_CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> int:
    """The CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; also where it does not tell."""
    if not _CPUINFO.exists():
        return True
    return not _BFLOAT16.isdisjoint(_CPUINFO.read_text().split())


def free_memory_bytes(device: str) -> int | None:
    """Memory that can be taken now on `cpu` or `cuda`; None where there is no such device."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return min(_available_bytes(), _cgroup_room_bytes())


def device_of(spec: PlacedSpec) -> str:
    """Where a model runs; `auto` is the GPU that was asked for, where there is one."""
    import torch

    if spec.device != "auto":
        return spec.device
    return "cuda" if spec.resources.num_gpus > 0 and torch.cuda.is_available() else "cpu"


def _available_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_room_bytes() -> int:
    """What the container's limit leaves; without one, more than any machine has."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        limit = "max"
    return 1 << 62 if limit == "max" else max(0, int(limit) - used)
