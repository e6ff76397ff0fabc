"""What a base gives for the rows of a split: shared over the workers, like lengths together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.engine.divided import together
from trainables.engine.workers import Workers
from trainables.tasks.grouping import in_batches
from trainables.tasks.split import Split, outputs_of, to_device

EVALUATION_ROWS = 64  # rows of one forward pass when measuring
EVALUATION_TOKENS = 2048
"""Tokens of one, padding included, of rows that differ much in length."""


def outputs_of_rows(model: nn.Module, split: Split, outputs: int, workers: Workers) -> torch.Tensor:
    """What a base with a head of so many outputs gives for every row, float64 [n, outputs]."""
    found = torch.zeros(len(split), outputs, dtype=torch.float64, device=workers.device)
    with together(model):
        for indices in workers.share(by_length(split)):
            batch = to_device(split.batch(indices), workers)
            batch.pop("labels")
            rows = torch.as_tensor(indices, device=workers.device)
            found[rows] = outputs_of(model, batch).double()
    return workers.sum_(found)


def by_length(split: Split) -> list[NDArray[np.int64]]:
    """The rows of a split in groups of like length."""
    return list(in_batches(np.argsort(split.lengths, kind="stable"), EVALUATION_ROWS))
