"""What a job's failure says of the worker that it was raised on.

CUDA, cuBLAS, cuDNN, NCCL and gloo name what is wrong in the text of an error alone. What the texts
do not tell is found by asking the device, after every job.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

NO_MEMORY = (
    "out of memory",  # of a GPU: torch's allocator, the driver, NCCL
    "can't allocate memory",  # of a CPU: torch's allocator
    "cannot allocate memory",  # the system
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # the handle's own memory
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_insufficient_resources",
)
POISONED = (
    "device-side assert triggered",
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "unspecified launch failure",
    "the launch timed out and was terminated",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "uncorrectable ecc error encountered",
    "uncorrectable nvlink error",
    "cuda error: unknown error",
    "status_execution_failed",
    "status_mapping_error",
    "status_internal_error",
)
"""After each of them every call of CUDA in the process fails until it ends."""
NOT_OF_A_PEER = ("ncclUnhandledCudaError", "ncclInvalidUsage", "ncclInvalidArgument")


def out_of_memory(failure: BaseException) -> bool:
    """Whether what was asked for did not fit: the process is as it was, the job is too large."""
    return any(map(_has_no_memory, _chain(failure))) and not process_is_lost(failure)


def process_is_lost(failure: BaseException) -> bool:
    """Whether CUDA no longer works in this process: nothing but a new one helps."""
    return any(_is_poison(each) and not _has_no_memory(each) for each in _chain(failure))


def peer_is_gone(failure: BaseException) -> bool:
    """Whether a collective failed because another rank died; gloo raises a bare RuntimeError.

    NCCL's own want of memory, a CUDA error that it met and a wrong use of it are the job's.
    """
    if out_of_memory(failure) or process_is_lost(failure):
        return False
    said = str(failure)
    if any(sign in said for sign in NOT_OF_A_PEER):
        return False
    return isinstance(failure, dist.DistError) or (
        isinstance(failure, RuntimeError) and ("gloo" in said or "NCCL" in said)
    )


def _has_no_memory(failure: BaseException) -> bool:
    if isinstance(failure, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(failure).lower()
    return any(sign in said for sign in NO_MEMORY)


def _is_poison(failure: BaseException) -> bool:
    said = str(failure).lower()
    return isinstance(failure, RuntimeError) and any(sign in said for sign in POISONED)


def _chain(failure: BaseException) -> Iterator[BaseException]:
    """A failure, and those that it was raised from or while they were handled."""
    each: BaseException | None = failure
    while each is not None:
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
