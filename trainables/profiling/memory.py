"""The memory that this process holds, where a limit is to be kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import psutil
import torch


def held_bytes(device: torch.device) -> int:
    """Bytes in use where a worker's tensors lie: of the GPU, or resident in the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def give_back(device: torch.device) -> None:
    """Give back what was freed but is still held, so that `held_bytes` counts what is in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def in_words(size: int) -> str:
    """A number of bytes for people to read: 1536 MiB or 12.5 MiB."""
    mib = size / 2**20
    return f"{mib:.0f} MiB" if mib >= 100 else f"{mib:.1f} MiB"
