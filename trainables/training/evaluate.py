"""Measuring a split."""

from __future__ import annotations

import torch
from torch import nn

from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.tasks.kinds.kind import Measurement
from trainables.tasks.measured_rows import MeasuredRows
from trainables.tasks.task import Task


def evaluate(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> dict[str, float]:
    """{"<name>_loss": mean loss, "<metric>": each metric} of a split, all dropout off."""
    return _report(name, _measured(model, adaptation, task, name, workers))


def evaluate_rows(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> tuple[dict[str, float], MeasuredRows | None]:
    """The same, and what the model says of every row, where that can be compared with another."""
    measured = _measured(model, adaptation, task, name, workers)
    return _report(name, measured), measured.rows


def _report(name: str, measured: Measurement) -> dict[str, float]:
    return {f"{name}_loss": measured.loss, **measured.metrics}


@torch.no_grad()
def _measured(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> Measurement:
    model.eval()
    adaptation.eval()
    kind = task.its_kind
    return kind.measure(task, name, kind.readings(model, task, name, workers))
