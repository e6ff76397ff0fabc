"""The rows that an adaptation may look at before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainables.engine.workers import Workers
from trainables.tasks.split import Pass, epoch_order, outputs_of, to_device
from trainables.tasks.task import Task


@dataclass(frozen=True)
class TrainingRows:
    """The training rows of a job, in an order that its seed decides.

    The order is none that an epoch trains in, and the same on every worker; `batch_size` rows are
    a micro-batch.
    """

    task: Task
    workers: Workers
    seed: int
    batch_size: int

    def batches(self, least: int = 1) -> list[NDArray[np.int64]]:
        """All rows in batches of a micro-batch, or of `least` rows where those are more.

        What is left over at the end is left out, but where it is all there is.
        """
        split = self.task.splits["train"]
        order, size = epoch_order(len(split), self.seed, 0), max(self.batch_size, least)
        whole = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        return whole or [order]

    def inputs(self, rows: NDArray[np.integer[Any]]) -> Pass:
        """The inputs of some rows in one pass, on the worker's device, without their labels."""
        batch = to_device(self.task.splits["train"].batch(rows), self.workers)
        batch.pop("labels")
        return batch

    def loss(self, model: nn.Module, rows: NDArray[np.integer[Any]]) -> torch.Tensor:
        """The mean loss over the targets of some rows."""
        split, device = self.task.splits["train"], self.workers.device
        loss = torch.zeros((), device=device)
        for given in split.passes(rows, device.type == "cpu"):
            batch = to_device(given, self.workers)
            labels = batch.pop("labels")
            loss = loss + self.task.its_kind.summed_loss(outputs_of(model, batch), labels)
        return loss / int(split.targets[rows].sum())
