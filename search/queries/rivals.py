"""Two confirmed choices of whatever sweeps, set against each other on the test rows of both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from search.objective import Objective
from search.queries.comparison import kept_rows
from search.queries.differences import CONFIDENCE, Difference, difference, drawn_values
from search.queries.trial_run import TrialRun
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from trainables.tasks.measured_rows import MeasuredRows, SuiteRows

TASK = "task.json"
"""Artifact of a sweep: what a launch told of its rows."""
_MEASURED_BY = ("kind", "metric", "positive_class", "extract", "generation", "label_form")
"""Keys of a task that decide what a value on given rows means."""


@dataclass(frozen=True)
class Tested:
    """A choice on test: the value of each seed, and the runs that measured them."""

    objective: Objective
    values: Mapping[int, float]
    runs: Sequence[RunFacts]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None of none."""
        return fmean(self.values.values()) if self.values else None


@dataclass(frozen=True)
class Rivalry:
    """How much better one choice is than another: `gap` with its 95 % interval, more being better
    whatever the metric; all None where `why_none` says why it cannot be told."""

    gap: float | None = None
    low: float | None = None
    high: float | None = None
    why_none: str = ""

    @property
    def is_won(self) -> bool:
        """Whether the first is better beyond the noise."""
        return self.low is not None and self.low > 0


def tested(run: TrialRun) -> Tested:
    """What the confirmations of a run's choice have measured on test."""
    objective = run.objective
    name = f"test_{objective.metric}"
    runs = [each for each in run.confirmations() if name in each.metrics]
    return Tested(objective, {_seed(each): each.metrics[name] for each in runs}, runs)


def rivalry(ours: TrialRun, theirs: TrialRun) -> Rivalry:
    """The first of two choices against the second, by the interval that `compare` goes by: seeds
    paired where both have them, on resamples of the test rows where these are kept.

    Raises TrackingError where MLflow cannot be read.
    """
    one, other = tested(ours), tested(theirs)
    if one.objective != other.objective:
        return _none(
            f"it was measured by {_by(one.objective)}, the champion by {_by(other.objective)}"
        )
    for each, who in ((one, "it"), (other, "the champion")):
        if not each.values:
            return _none(f"{who} was never measured on test")
    for each, who in ((one, "it"), (other, "the champion")):
        if len(each.values) < 2:
            return _none(f"{who} was confirmed with one seed, and noise shows between two")
    data = _same_test(ours, theirs)
    if data is None:
        return _none("the champion was measured on other test rows, or by another rule")
    found = _difference(ours.recorded, one, other, data)
    if found is None:
        return _none("the seeds of each are all alike, and what was said of each row is not kept")
    low, high = found.interval(1 - CONFIDENCE)
    if one.objective.mode == "min":
        return Rivalry(-found.gap, -high, -low)
    return Rivalry(found.gap, low, high)


def _none(why: str) -> Rivalry:
    return Rivalry(why_none=why)


def _by(objective: Objective) -> str:
    return f"{objective.metric} ({objective.mode})"


def _seed(run: RunFacts) -> int:
    assert run.seed is not None, "confirmations have one"
    return run.seed


# -- the test rows ---------------------------------------------------------------------------------


def _same_test(ours: TrialRun, theirs: TrialRun) -> Mapping[str, str] | None:
    """Split -> what names its rows, where both were measured on the same ones alike; else None.

    Older sweeps name their rows as a whole alone, with those that train: then nothing of them may
    differ.
    """
    one, other = _test_rows(ours), _test_rows(theirs)
    if one is not None and other is not None:
        alike = one == other and _rule(ours) == _rule(theirs)
        return one if alike else None
    a, b = (run.facts.task_fingerprint for run in (ours, theirs))
    return {} if a is not None and a == b else None


def _test_rows(run: TrialRun) -> dict[str, str] | None:
    """What names the rows of test, of a suite those of each member as `<member>/test`."""
    told = told_of_rows(run)
    names = told.get("row_fingerprints")
    if not isinstance(names, Mapping):
        return None
    return {
        split: str(name)
        for split, name in names.items()
        if split == "test" or split.endswith("/test")
    }


def told_of_rows(run: TrialRun) -> Mapping[str, Any]:
    """What the launch of a run's sweep told of its rows; nothing where that is not kept."""
    parent = run.facts.parent
    if parent is None or TASK not in run.recorded.files(parent):
        return {}
    told = json.loads(run.recorded.artifact(parent, TASK))
    return told if isinstance(told, Mapping) else {}


def _rule(run: TrialRun) -> Any:
    section = run.sweep().get("task", {})
    members = section.get("suite") or ()
    return [{key: each.get(key) for key in _MEASURED_BY} for each in (section, *members)]


def _difference(
    recorded: RecordedRuns, one: Tested, other: Tested, data: Mapping[str, str]
) -> Difference | None:
    rows = kept_rows(recorded, [run.run_id for each in (one, other) for run in each.runs])
    kept = [_named(each, data) for each in rows.values()]
    whole = len(kept) == len(one.runs) + len(other.runs)
    drawn = None
    if whole and all(each.is_of(kept[0]) for each in kept):
        drawn = drawn_values(kept)
    if drawn is None:
        return difference(one.values, other.values)
    of_run = dict(zip(rows, drawn, strict=True))
    ours, theirs = ({_seed(run): of_run[run.run_id] for run in each.runs} for each in (one, other))
    return difference(one.values, other.values, ours, theirs, len(kept[0]))


def _named(rows: MeasuredRows, data: Mapping[str, str]) -> MeasuredRows:
    """The rows under the name of their test rows alone, not of all that their task has: those of
    two sweeps that trained on others are the same."""
    if not data:
        return rows
    if isinstance(rows, SuiteRows):
        members = {
            name: replace(each, rows=data.get(f"{name}/test", each.rows))
            for name, each in rows.members.items()
        }
        return replace(rows, rows="", members=members)
    return replace(rows, rows=data.get("test", rows.rows))
