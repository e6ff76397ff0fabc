"""Measuring a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spaces.errors import JobError, one_line
from trainables.adaptations.adaptation import Adaptation
from trainables.engine.workers import Workers
from trainables.tasks.collapse import PREDICTED_CLASSES
from trainables.tasks.kinds.kind import Measurement
from trainables.tasks.measured_rows import MeasuredRows, RowStatistics, SuiteRows
from trainables.tasks.row_metrics import weighted
from trainables.tasks.task import Task


class OwnMetricError(JobError):
    """The user's metric gave no number on some worker; all of them raise it."""


def evaluate(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> dict[str, float]:
    """{"<name>_loss": mean loss, "<metric>": each metric} of a split, all dropout off.

    Of a suite they are means over its members, and "<member>/<metric>" is each one's own. Where
    classes are predicted, "predicted_classes" is how many; of a suite that of the member with most.
    """
    return _report(name, _measured(model, adaptation, task, name, workers))


def evaluate_rows(
    model: nn.Module, adaptation: Adaptation, task: Task, name: str, workers: Workers
) -> tuple[dict[str, float], MeasuredRows | None]:
    """The same, and what the model says of every row, where that can be compared with another; its
    answers are in it."""
    measured = _measured(model, adaptation, task, name, workers, answers=True)
    return _report(name, measured), measured.rows


def _report(name: str, measured: Measurement) -> dict[str, float]:
    return {f"{name}_loss": measured.loss, **measured.metrics}


@torch.no_grad()
def _measured(
    model: nn.Module,
    adaptation: Adaptation,
    task: Task,
    name: str,
    workers: Workers,
    answers: bool = False,
) -> Measurement:
    model.eval()
    adaptation.eval()
    every = {}
    for key, each in (task.suite or {"": task}).items():
        readings = each.its_kind.readings(model, each, name, workers)
        every[key] = _of_one(each, name, readings, workers)
        if answers:
            every[key] = _with_answers(every[key], each, name, readings)
    return _of_suite(task, every) if task.suite else every[""]


def _with_answers(measured: Measurement, task: Task, name: str, readings: Any) -> Measurement:
    """The same with what is answered for each row, where its numbers do not say that already."""
    rows = measured.rows
    if not isinstance(rows, RowStatistics):
        return measured
    try:
        answers, right = task.its_kind.answers(task, name, readings)
    except NotImplementedError:  # a kind without answers
        return measured
    if len(answers) != len(rows):  # nothing is written where only the loss is measured
        return measured
    one_each = all(isinstance(each, str | int | float) for each in right)
    labels = tuple(right) if one_each else None
    return replace(measured, rows=replace(rows, answers=tuple(answers), right=labels))


def _of_one(task: Task, name: str, readings: Any, workers: Workers) -> Measurement:
    kind = task.its_kind
    if task.metric not in task.own:
        return kind.measure(task, name, readings)
    usual = kind.measure(replace(task, metric=kind.metrics[0]), name, readings)
    value = _agreed_value(task, *kind.answers(task, name, readings), workers)
    rows = None
    if value.ndim:
        statistics = weighted(value, np.ones_like(value))
        rows = RowStatistics(task.metric, task.fingerprint, statistics)
    return Measurement(usual.loss, {**usual.metrics, task.metric: float(value.mean())}, rows)


def _agreed_value(
    task: Task, answers: Sequence[Any], references: Sequence[Any], workers: Workers
) -> NDArray[np.float64]:
    """What the user's metric gives: one number [], or that of each row [n]. A collective.

    Raises OwnMetricError on all workers where it gives no number on one.
    """
    value, wrong = np.array(np.nan), None
    try:
        value = np.asarray(task.own[task.metric](answers, references), dtype=np.float64)
    except Exception as error:  # whatever a user's function raises
        wrong = f"failed ({one_line(error)}); correct it"
    else:
        if value.shape not in ((), (len(answers),)):
            wrong = (
                f"gave {list(value.shape)} numbers for {len(answers)} rows; give one, or one for "
                "each row"
            )
        elif lacking := int((~np.isfinite(value)).sum()):
            of = f" for {lacking:,} of {value.size:,} rows" if value.ndim else ""
            wrong = f"gave no number{of} (None, NaN or infinity); give one for whatever is answered"
    for told in workers.gather_objects(wrong):
        if told is not None:
            raise OwnMetricError(f"task.metric: {task.metric} {told}, and go on with --resume")
    return value


def _of_suite(task: Task, members: Mapping[str, Measurement]) -> Measurement:
    """The means over the members, and each one's metric as "<member>/<metric>"."""
    values = {
        f"{name}/{task.suite[name].metric}": each.metrics[task.suite[name].metric]
        for name, each in members.items()
    }
    rows = {name: each.rows for name, each in members.items() if each.rows is not None}
    told = [each.metrics.get(PREDICTED_CLASSES) for each in members.values()]
    known = [each for each in told if each is not None]
    # A suite has collapsed where every member has.
    of_all = {PREDICTED_CLASSES: max(known)} if len(known) == len(members) else {}
    return Measurement(
        loss=fmean(each.loss for each in members.values()),
        metrics={task.metric: fmean(values.values()), **values, **of_all},
        rows=SuiteRows(task.metric, task.fingerprint, rows) if len(rows) == len(members) else None,
    )
