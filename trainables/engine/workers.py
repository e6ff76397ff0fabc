"""The worker's place in its group: rank, size, device, and the few collectives that jobs need."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from trainables.engine.accelerator import follow

GLOO_AND_NCCL = "cpu:gloo,cuda:nccl"
"""Backends of workers on GPUs: what lies on a CPU goes through gloo, and no device waits for it."""


class CancelledError(Exception):
    """The driver has stopped this job."""


def never() -> bool:
    """No."""
    return False


@dataclass(frozen=True)
class Workers:
    """One worker of `size`, on `device`; `should_stop` is whether it has heard that its job is to
    end, which the others may not have."""

    rank: int
    size: int
    device: torch.device
    should_stop: Callable[[], bool] = field(default=never, kw_only=True)

    def share(self, items: Any) -> Any:
        """Every size-th item, starting with the rank's own."""
        return items[self.rank :: self.size]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def reduce_to(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all workers, in place on worker `rank`; the others' means nothing."""
        if self.size > 1:
            dist.reduce(tensor, dst=rank)
        return tensor

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag, on every rank. The device is not waited for, but the other ranks are."""
        if self.size == 1:
            return flag
        shared = torch.tensor([int(flag)], device="cpu")
        dist.broadcast(shared, src=0)
        return bool(shared.item())

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's object, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's object, in the order of the ranks, on every rank."""
        box = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(box, value)
        return box


def _store_of_one() -> Any:
    return dist.HashStore()


def join(device: torch.device | None = None) -> Workers:
    """This process's place in its process group, with DeepSpeed's communication ready.

    DeepSpeed computes on `device` (default: the CPU) from here on. Without a process group (a test,
    a script) it makes one of a single worker. DeepSpeed's own shared-memory all-reduce for CPUs is
    left out: it wants a compiler and up to a minute at first use, and a group's gradients are
    small; gloo does the same sums.
    """
    device = device or torch.device("cpu")
    follow(device)
    os.environ.setdefault("LOCAL_RANK", "0")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # An engine takes the device of this number, and Ray numbers ranks and devices by itself.
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())
    if not dist.is_initialized():
        backend = GLOO_AND_NCCL if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store_of_one(), rank=0, world_size=1)
    import deepspeed

    if not deepspeed.comm.is_initialized():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return Workers(dist.get_rank(), dist.get_world_size(), device)
