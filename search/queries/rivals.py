"""Two confirmed choices of whatever sweeps, set against each other on the test rows of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from search.objective import Objective
from search.queries.comparison import kept_rows
from search.queries.differences import CONFIDENCE, Difference, difference, drawn_values
from search.queries.same_test import named_alike, same_test
from search.queries.same_test import told_of_rows as its_told_of_rows
from search.queries.trial_run import TrialRun
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns


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
    data = same_test(
        ours.recorded, (ours.facts.parent, ours.facts), (theirs.facts.parent, theirs.facts)
    )
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


def told_of_rows(run: TrialRun) -> Mapping[str, Any]:
    """What the launch of a run's sweep told of its rows; nothing where that is not kept."""
    return its_told_of_rows(run.recorded, run.facts.parent)


def _difference(
    recorded: RecordedRuns, one: Tested, other: Tested, data: Mapping[str, str]
) -> Difference | None:
    rows = kept_rows(recorded, [run.run_id for each in (one, other) for run in each.runs])
    kept = [named_alike(each, data) for each in rows.values()]
    whole = len(kept) == len(one.runs) + len(other.runs)
    drawn = None
    if whole and all(each.is_of(kept[0]) for each in kept):
        drawn = drawn_values(kept)
    if drawn is None:
        return difference(one.values, other.values)
    of_run = dict(zip(rows, drawn, strict=True))
    ours, theirs = ({_seed(run): of_run[run.run_id] for run in each.runs} for each in (one, other))
    return difference(one.values, other.values, ours, theirs, len(kept[0]))
