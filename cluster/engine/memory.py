"""How much memory the cache may take, and how freed memory is kept from one pass to the next."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

from cluster.errors import InvalidRequest

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Have the C library hand freed blocks of megabytes to the next pass, not to the system.

    Every pass would touch them anew, page by page: at 32 sequences that was half of its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # as much as it takes


def default_memory(device: torch.device) -> int:
    """On a GPU most of what is free; elsewhere a modest share, touched only when used."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.85)
    return min(1 << 30, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def require_room(num_pages: int, page_bytes: int) -> None:
    if num_pages < 1:
        message = f"too little for one page of cache: this model needs at least {page_bytes} bytes"
        raise InvalidRequest("KV_MEMORY", message, field="kv_memory_bytes")
