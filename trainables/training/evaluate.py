"""Measuring a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from spaces.errors import JobError, one_line
from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.tasks.kinds.kind import Measurement
from trainables.tasks.measured_rows import MeasuredRows, RowStatistics, SuiteRows
from trainables.tasks.row_metrics import weighted
from trainables.tasks.task import Task


def evaluate(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> dict[str, float]:
    """{"<name>_loss": mean loss, "<metric>": each metric} of a split, all dropout off.

    Of a suite they are means over its members, and "<member>/<metric>" is each one's own.
    """
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
    if task.suite:
        every = {key: _of_one(model, each, name, workers) for key, each in task.suite.items()}
        return _of_suite(task, every)
    return _of_one(model, task, name, workers)


def _of_one(model: nn.Module, task: Task, name: str, workers: Workers) -> Measurement:
    kind = task.its_kind
    readings = kind.readings(model, task, name, workers)
    if task.metric not in task.own:
        return kind.measure(task, name, readings)
    usual = kind.measure(replace(task, metric=kind.metrics[0]), name, readings)
    return _by_own_metric(task, usual, *kind.answers(task, name, readings))


def _by_own_metric(
    task: Task, usual: Measurement, answers: Sequence[Any], references: Sequence[Any]
) -> Measurement:
    """A measurement by the user's metric, beside the kind's usual one.

    Raises JobError where it gives no number.
    """
    try:
        value = np.asarray(task.own[task.metric](answers, references), dtype=np.float64)
    except Exception as error:  # whatever a user's function raises
        raise JobError(
            f"task.metric: {task.metric} failed ({type(error).__name__}: {one_line(error)}); "
            "correct it, and go on with --resume"
        ) from error
    if value.shape not in ((), (len(answers),)):
        raise JobError(
            f"task.metric: {task.metric} gave {list(value.shape)} numbers for {len(answers)} rows; "
            "give one, or one for each row"
        )
    rows = None
    if value.ndim:
        statistics = weighted(value, np.ones_like(value))
        rows = RowStatistics(task.metric, task.fingerprint, statistics)
    return Measurement(usual.loss, {**usual.metrics, task.metric: float(value.mean())}, rows)


def _of_suite(task: Task, members: Mapping[str, Measurement]) -> Measurement:
    """The means over the members, and each one's metric as "<member>/<metric>"."""
    values = {
        f"{name}/{task.suite[name].metric}": each.metrics[task.suite[name].metric]
        for name, each in members.items()
    }
    rows = {name: each.rows for name, each in members.items() if each.rows is not None}
    return Measurement(
        loss=fmean(each.loss for each in members.values()),
        metrics={task.metric: fmean(values.values()), **values},
        rows=SuiteRows(task.metric, task.fingerprint, rows) if len(rows) == len(members) else None,
    )
