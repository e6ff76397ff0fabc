"""What the texts of torch, CUDA, NCCL and gloo say of a worker."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from trainables.engine.failures import out_of_memory, peer_is_gone, process_is_lost

TAIL = (
    "\nSearch for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call, so "
    "the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was not enabled by user."
)
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.27.5"
    "\n{}\nLast error:\n{}"
)
UNHANDLED = (
    "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "ncclUnhandledCudaError: Call to CUDA function failed.",
)
REMOTE = (
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.",
)
USAGE = ("invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.")


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"),
        torch.AcceleratorError("CUDA error: out of memory" + TAIL),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(h)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        dist.DistBackendError(NCCL.format(*UNHANDLED, "Cuda failure 2 'out of memory'")),
        dist.DistBackendError(NCCL.format(*UNHANDLED, "Failed to CUDA calloc async 608 bytes; "
                                          "Cuda failure 'out of memory'")),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        OSError(12, "Cannot allocate memory"),
        MemoryError("Unable to allocate 8.00 GiB for an array with shape (1073741824,)"),
    ],
)  # fmt: skip
def test_what_did_not_fit_is_neither_a_lost_process_nor_a_lost_peer(failure: Exception) -> None:
    assert out_of_memory(failure)
    assert not process_is_lost(failure)
    assert not peer_is_gone(failure)


@pytest.mark.parametrize(
    "failure",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered" + TAIL),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + TAIL),
        torch.AcceleratorError("CUDA error: unspecified launch failure" + TAIL),
        torch.AcceleratorError("CUDA error: misaligned address" + TAIL),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + TAIL),
        torch.AcceleratorError("CUDA error: unknown error" + TAIL),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA driver error: unspecified launch failure"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm("),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        dist.DistBackendError(
            NCCL.format(*UNHANDLED, "Cuda failure 700 'an illegal memory access was encountered'")
        ),
    ],
)  # fmt: skip
def test_a_cuda_error_that_stays_loses_the_process(failure: Exception) -> None:
    assert process_is_lost(failure)
    assert not out_of_memory(failure)
    assert not peer_is_gone(failure)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed "
                     "by peer [10.0.0.7]:41234"),
        dist.DistBackendError(NCCL.format(*REMOTE, "socketProgressOpt: Call to recv from 10.0.0.7 "
                                          "failed : Connection reset by peer")),
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
        dist.DistBackendError("[1] is setting up NCCL communicator and retrieving ncclUniqueId "
                              "from [0], but store->get('0') got error: Connection reset by peer"),
        dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    ],
)  # fmt: skip
def test_a_collective_that_another_rank_broke_says_so(failure: Exception) -> None:
    assert peer_is_gone(failure)
    assert not process_is_lost(failure)
    assert not out_of_memory(failure)


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("device-side assert triggered"),  # of a user's own code that talks of one
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        dist.DistBackendError(NCCL.format(*USAGE, "Duplicate GPU detected : rank 0 and rank 1")),
        dist.DistBackendError(NCCL.format(*UNHANDLED, "Cuda failure 1 'invalid argument'")),
    ],
)
def test_any_other_failure_is_the_jobs_own(failure: Exception) -> None:
    assert not out_of_memory(failure)
    assert not process_is_lost(failure)
    assert not peer_is_gone(failure)


def test_what_went_wrong_while_a_failure_was_handled_does_not_hide_it() -> None:
    def raised(first: Exception, then: Exception) -> Exception:
        try:
            try:
                raise first
            finally:
                raise then
        except Exception as last:
            return last

    poison = RuntimeError("CUDA error: device-side assert triggered")
    memory = torch.OutOfMemoryError("CUDA out of memory.")
    assert process_is_lost(raised(poison, KeyError("hook")))
    assert out_of_memory(raised(memory, KeyError("hook")))
    assert process_is_lost(raised(memory, poison))
    assert not out_of_memory(raised(memory, poison))
