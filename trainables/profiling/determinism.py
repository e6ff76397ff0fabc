"""A profile that is the same bit for bit each time that it is computed on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spaces.errors import JobError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")  # with which cuBLAS gives the same bits each time


def allow_determinism() -> None:
    """Let jobs ask for it: cuBLAS reads its variable once, as a process first multiplies.

    It costs a process some 24 MiB of its GPU, and nothing where the user has set the variable.
    """
    os.environ.setdefault(CUBLAS, FIXED[0])


@contextmanager
def deterministic(wanted: bool, device: torch.device) -> Iterator[None]:
    """While open, and where `wanted`, a GPU runs only what gives the same bits each time.

    On a CPU that holds anyway. Raises JobError for an operation that has no such form, which
    `profile.deterministic` is turned off for, and where cuBLAS is told otherwise.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    if os.environ.get(CUBLAS) not in FIXED:
        raise JobError(
            f"profile.deterministic: {CUBLAS} is {os.environ.get(CUBLAS)!r} on the workers; unset "
            f"it or make it {FIXED[0]}"
        )
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # attention asks for it too, unless it only warns
    memory.fill_uninitialized_memory = False  # nothing here reads such memory
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        operation = str(error).partition(" does not have")[0]
        raise JobError(
            f"profile.deterministic: {operation} has no deterministic form; set it to false"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = filled
