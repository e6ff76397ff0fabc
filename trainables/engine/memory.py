"""The memory that this process holds, where a limit is to be kept."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import psutil
import torch

MARGIN = 0.05  # of a GPU's memory: what its allocator cannot use, and what others than torch take


def limit_of(device: torch.device, wanted: int | None) -> int | None:
    """Bytes that this process may come to hold: `wanted`, else what is there for it on a GPU.

    That is the free memory and what torch holds already, less a margin. None, no limit, on a CPU.
    """
    if wanted is not None or device.type != "cuda":
        return wanted
    free, total = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - MARGIN * total)


def held_bytes(device: torch.device) -> int:
    """Bytes in use where a worker's tensors lie: of the GPU, or resident in the process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class HighestHeld:
    """The most bytes that were held since it was made: of a GPU by its allocator's own count, else
    at the moments of `look`. One at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.look()

    def look(self) -> None:
        """See what is held now, where nothing else counts it."""
        if self._device.type != "cuda":
            self._seen = max(self._seen, held_bytes(self._device))

    @property
    def bytes(self) -> int:
        """The most that was held."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return self._seen


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
