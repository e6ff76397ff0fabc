"""Batches of an epoch, and their tensors on a worker's device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.engine.workers import Workers
from trainables.tasks.grouping import PASS_TOKENS, of_like_length

__all__ = ["PASS_TOKENS", "in_batches", "of_like_length", "to_device"]


def to_device(batch: Mapping[str, Any], workers: Workers) -> dict[str, Any]:
    """The batch with its tensors on the worker's device."""
    return {
        key: value.to(workers.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def in_batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
