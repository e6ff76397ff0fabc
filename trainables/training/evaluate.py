"""Measuring a split."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.tasks.kinds import KINDS
from trainables.tasks.measured_rows import MeasuredRows, measured_rows
from trainables.tasks.task import Task
from trainables.training.batches import in_batches, to_device

EVALUATION_ROWS = 64  # rows of one forward pass when measuring


def evaluate(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> dict[str, float]:
    """{"<name>_loss": mean loss, "<metric>": the task's metric} of a split, all dropout off."""
    return _report(task, name, _logits(model, adaptation, task, name, workers))


def evaluate_rows(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> tuple[dict[str, float], MeasuredRows]:
    """The same, and what the model says of every row."""
    logits = _logits(model, adaptation, task, name, workers)
    labels = task.splits[name].labels
    rows = measured_rows(task.metric, task.fingerprint, labels, logits.cpu().numpy(), task.positive)
    return _report(task, name, logits), rows


def _report(task: Task, name: str, logits: torch.Tensor) -> dict[str, float]:
    loss, metric = KINDS[task.kind].measure(
        task.metric, logits, task.splits[name].labels, task.positive
    )
    return {f"{name}_loss": loss, task.metric: metric}


@torch.no_grad()
def _logits(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> torch.Tensor:
    """Logits float64 [n, classes] of a split.

    Rows of like length go through the model together; every rank takes its share.
    """
    split = task.splits[name]
    model.eval()
    adaptation.eval()
    rows = len(split.labels)
    by_length = np.argsort(split.lengths, kind="stable")
    logits = torch.zeros(rows, len(task.labels), dtype=torch.float64, device=workers.device)
    batches = list(in_batches(by_length, EVALUATION_ROWS))
    for indices in workers.share(batches):
        batch = to_device(split.batch(indices), workers)
        batch.pop("labels")
        logits[torch.as_tensor(indices, device=workers.device)] = model(**batch).logits.double()
    workers.sum_(logits)
    return logits
