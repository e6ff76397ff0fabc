"""Two trials composed: their updates added to one base, both tasks measured (TASO, Table 4)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from search.queries.trial_run import TrialRun, find_trial
from search.trained.its_task import its_files, task_settings
from spaces.errors import ConfigError, UsageError
from trainables.bases.loading import Base
from trainables.engine.workers import join
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.task import Task, build_task
from trainables.trained import composition
from trainables.trained.composition import Side
from trainables.trained.restored import load_its_base
from trainables.trained.weights import Trained, TrainedFacts

logger = logging.getLogger(__name__)

SplitName = Literal["test", "dev"]


@dataclass(frozen=True)
class Measured:
    """One side of a composition: its task's metric with its own update alone and with both.

    `task_changed` says that the task's rows are no longer those that the trial was measured on.
    """

    run_id: str
    method: str
    task: str
    metric: str
    rows: int
    alone: float
    composed: float
    task_changed: bool


@dataclass(frozen=True)
class Composition:
    """Both sides, and the mean of their metrics without and with the other's update."""

    split: str
    sides: tuple[Measured, Measured]

    @property
    def alone(self) -> float:
        """Mean over both tasks, each with its own update alone."""
        return sum(side.alone for side in self.sides) / 2

    @property
    def composed(self) -> float:
        """Mean over both tasks, with both updates."""
        return sum(side.composed for side in self.sides) / 2

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        a, b = (asdict(side) for side in self.sides)
        average = {"alone": self.alone, "composed": self.composed}
        return {"split": self.split, "a": a, "b": b, "average": average}


def compose(
    tracking_uri: str,
    run_ids: tuple[str, str],
    split: SplitName = "test",
    rows: int | None = None,
    base_uri: str | None = None,
    *,
    own_code: bool = False,
) -> Composition:
    """Add the updates of two trials to their base, and measure the task of each with its own head.

    At most `rows` rows of the split are measured. It runs in this process, on a GPU where there is
    one. Code of a task's own, of a kind or a metric, is imported only where `own_code` is wanted.
    Raises ConfigError where the trials have no base in common or a task no such split,
    UsageError where a run has no weights, code of a task's own is not wanted, or an update is none
    of the base's own parameters, and DataError or BaseModelError where data or base cannot be had.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: {rows} is not a number of rows; use 1 or more")
    one, two = (find_trial(tracking_uri, run_id) for run_id in run_ids)
    trained = (one.trained(own_code=own_code), two.trained(own_code=own_code))
    _check_same_base((one, two), trained)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bases: dict[tuple[str, int, str], Base] = {}

    def base_for(facts: TrainedFacts) -> Base:
        """A base with the head that a task needs; tasks of one head and size share it."""
        size = kind_of(facts.task_kind).head, len(facts.labels), facts.dtype
        if size not in bases:
            bases[size] = load_its_base(facts, base_uri, device)
        return bases[size]

    def side_of(run: TrialRun, its: Trained) -> tuple[Side, bool]:
        base = base_for(its.facts)
        task, changed = _task(run, its, base.uri, split, own_code)
        task = composition.limited(task, split, rows)
        return composition.Side(its, run.plan(), task, base), changed

    (a, a_changed), (b, b_changed) = side_of(one, trained[0]), side_of(two, trained[1])
    values = composition.compose((a, b), split, join(device))

    def measured(run: TrialRun, side: Side, both: tuple[float, float], changed: bool) -> Measured:
        return Measured(
            run_id=run.run_id,
            method=run.method,
            task=side.task.name,
            metric=side.task.metric,
            rows=side.task.rows_of(split),
            alone=both[0],
            composed=both[1],
            task_changed=changed,
        )

    return Composition(
        split, (measured(one, a, values[0], a_changed), measured(two, b, values[1], b_changed))
    )


def _check_same_base(runs: tuple[TrialRun, TrialRun], trained: tuple[Trained, Trained]) -> None:
    (one, two), (a, b) = runs, (its.facts.base_fingerprint for its in trained)
    if a != b:
        raise ConfigError(
            f"RUN_B: {two.run_id} was trained on another base ({b[:12]}) than {one.run_id} "
            f"({a[:12]}); compose trials of one base (`ranksweep best --base` finds them)"
        )


def _task(
    run: TrialRun, trained: Trained, base_uri: str, split: str, own_code: bool
) -> tuple[Task, bool]:
    """The task of a trial, built again from its sweep, and whether its rows have changed since."""
    settings = task_settings(run, own_code=own_code)
    with its_files(run):
        task = build_task(settings, base_uri)
    if lacking := task.lacking(split):
        whose = f" of {', '.join(lacking)}" if task.suite else ""
        raise ConfigError(
            f"--split: the task of {run.run_id} has no {split}{whose}; use --split "
            f"{'dev' if split == 'test' else 'test'}"
        )
    if task.labels != trained.facts.labels:
        raise UsageError(
            f"{run.run_id}: its task has the classes {', '.join(task.labels)} now, and had "
            f"{', '.join(trained.facts.labels)} when it was trained; put its data back"
        )
    before = run.facts.task_fingerprint
    changed = before is not None and before != task.fingerprint
    if changed:
        logger.warning(
            "%s: the rows of its task %r are no longer those it was trained on (%s now, %s then); "
            "the numbers are of the new rows",
            run.run_id,
            task.name,
            task.fingerprint[:12],
            str(before)[:12],
        )
    return task, changed
