"""All that MLflow has of a task: its sweeps, each read whole, and how its best has moved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from search.queries import best
from search.queries.history import Step, history
from search.queries.rivals import Rivalry, rivalry
from search.queries.sweep_record import SweepRecord, read_sweep
from search.queries.trial_run import TrialRun
from search.tracking.runs import RecordedRuns
from spaces.errors import RanksweepError, one_line

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """What the newest sweep that has a best did to the best before it, on the same base and data.

    `before` is None where there was none. `rivalry` sets the two against each other on test, None
    where their runs or artifacts cannot be had.
    """

    last: Step
    before: Step | None
    rivalry: Rivalry | None


@dataclass(frozen=True)
class TaskRecord:
    """A task as MLflow has it: its sweeps and the best of each, the oldest first.

    A sweep without a complete trial has no step. `move` is None where no sweep has one.
    """

    task: str
    tracking_uri: str
    sweeps: tuple[SweepRecord, ...]
    steps: tuple[Step, ...]
    move: Move | None

    @property
    def comparable(self) -> tuple[Step, ...]:
        """The steps over the newest's data and by its metric, on whatever base."""
        return tuple(alike(self.steps[-1], self.steps)) if self.steps else ()

    @property
    def leader(self) -> Step | None:
        """The best of those, by what it holds; None where there are none."""
        return max(self.comparable, key=gain, default=None)

    def step_of(self, sweep: SweepRecord) -> Step | None:
        """The best that a sweep has found; None where no trial of it is complete."""
        return next((s for s in self.steps if s.sweep_run == sweep.run.run_id), None)

    @property
    def bases(self) -> list[str]:
        """What the steps' bases are called, in the order in which they came."""
        return list(dict.fromkeys(called(step) for step in self.steps))


def task_record(tracking_uri: str, task: str) -> TaskRecord:
    """Read a task. Raises RanksweepError where MLflow has no sweep of it, with the nearest name;
    TrackingError where MLflow cannot be read."""
    recorded = RecordedRuns(tracking_uri)
    found = recorded.search({"kind": "sweep", "task": task}, recorded.experiments())
    if not found:
        raise RanksweepError(best.why_none(tracking_uri, task))
    steps = sorted(history(tracking_uri, task), key=lambda step: step.started_ms or 0)
    sweeps = sorted(found, key=lambda run: run.started_ms)
    return TaskRecord(
        task=task,
        tracking_uri=tracking_uri,
        sweeps=tuple(read_sweep(recorded, run.run_id, max_curves=0) for run in sweeps),
        steps=tuple(steps),
        move=_move(recorded, steps),
    )


def called(step: Step) -> str:
    """What a step's base is called in a figure: what it is a version of, or the end of its URI."""
    if step.base_name:
        return step.base_name
    place = step.base_uri.partition(":")[2] or step.base_uri
    parts = [part for part in place.split("/") if part]
    return "/".join(parts[-2:]) or step.base[:12]


def gain(step: Step) -> float:
    """What a step holds, of which more is better always."""
    return step.holds if step.mode == "max" else -step.holds


def alike(step: Step, steps: Sequence[Step]) -> list[Step]:
    """Those over the same data and by the same metric."""
    return [each for each in steps if (each.data, each.metric) == (step.data, step.metric)]


def _move(recorded: RecordedRuns, steps: Sequence[Step]) -> Move | None:
    if not steps:
        return None
    last = steps[-1]
    earlier = [each for each in alike(last, steps[:-1]) if each.group == last.group]
    before = max(earlier, key=gain, default=None)
    if before is None:
        return Move(last, None, None)
    ours, theirs = _run(recorded, last), _run(recorded, before)
    if ours is None or theirs is None:
        return Move(last, before, None)
    try:
        return Move(last, before, rivalry(ours, theirs))
    except (RanksweepError, OSError, ValueError) as error:
        _log.warning("%s and %s are not compared: %s", last.sweep, before.sweep, one_line(error))
        return Move(last, before, None)


def _run(recorded: RecordedRuns, step: Step) -> TrialRun | None:
    facts = recorded.find(step.run_id)
    return None if facts is None else TrialRun(facts, frozenset(), recorded)
