"""What a base gives for the rows of a split: shared over the workers, like lengths together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.engine.divided import together
from trainables.engine.workers import Workers
from trainables.tasks.grouping import within_budget
from trainables.tasks.split import Split, outputs_of, to_device

EVALUATION_TOKENS = 2048
"""Tokens of one forward pass when measuring, padding included."""
DEVICE_TOKENS = 8192
"""As many of those whose head is small, on a device that is fastest with many."""


def outputs_of_rows(model: nn.Module, split: Split, outputs: int, workers: Workers) -> torch.Tensor:
    """What a base with a head of so many outputs gives for every row, float64 [n, outputs]."""
    found = torch.zeros(len(split), outputs, dtype=torch.float64, device=workers.device)
    with together(model):
        for indices in workers.share(by_length(split, workers.device.type == "cpu")):
            batch = to_device(split.batch(indices), workers)
            batch.pop("labels")
            rows = torch.as_tensor(indices, device=workers.device)
            found[rows] = outputs_of(model, batch).double()
    return workers.sum_(found)


def by_length(split: Split, on_cpu: bool) -> list[NDArray[np.int64]]:
    """The rows of a split in groups of like length, each of as many tokens as go well together."""
    return within_budget(split.lengths, EVALUATION_TOKENS if on_cpu else DEVICE_TOKENS)
