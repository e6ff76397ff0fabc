"""What a process computes with: the worker's own device, not whatever its node has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def follow(device: torch.device) -> None:
    """Have DeepSpeed compute on a device of this kind, before or after it is imported.

    Left to itself it takes a GPU where it sees one, and Ray leaves those of a node visible to the
    workers of its CPUs: the adapters would then lie on another device than their base.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    loaded: Any = sys.modules.get("deepspeed.accelerator")
    if loaded is None or loaded.get_accelerator().device_name() == device.type:
        return
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    loaded.set_accelerator({"cpu": CPU_Accelerator, "cuda": CUDA_Accelerator}[device.type]())


@contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round the factors of float32 products to 10 bits of mantissa, for a while.

    Of matrix products and convolutions; a CPU and all other dtypes compute as before.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
