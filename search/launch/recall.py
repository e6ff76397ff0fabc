"""A launch that goes on has MLflow told again what it no longer has of the sweep.

Its database may have been lost or put back from a copy, or the launch tracks to another one now.
Which runs are there is told by their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from search.paths import SweepPaths, artifacts_beside
from search.queries.trial_run import WEIGHTS
from search.study.left_open import own_trials, write_confirmation_from_study, write_from_study
from search.study.study import Study
from search.tracking.facts import RunFacts
from search.tracking.journal import Journal, JournalRun
from search.tracking.mlflow import RefusedError, sqlite_file
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from search.tracking.weights import WeightFiles
from spaces.errors import ConfigError, TrackingError, one_line
from spaces.plan import Plan


@dataclass(frozen=True)
class Recall:
    """What is needed to tell MLflow again of a sweep's trials.

    `objective` is what the study's intermediate values are of, `metric` what confirmations measure;
    `driver` names the launch where others share the study, `tracked_before` is where the launch
    before this one has tracked to.
    """

    journal: Journal
    study: Study
    tracker: Tracker
    sweep_run_id: str
    paths: SweepPaths
    driver: str
    objective: str
    metric: str
    plan_of: Callable[[Mapping[str, Any]], Plan]
    say: Callable[[str], object]
    tracked_before: str | None = None

    def tell_again(self) -> None:
        """Have the journal tell what MLflow lacks, and say what cannot be had again."""
        try:
            children = self.tracker.children(self.sweep_run_id)
            lost, without_record = self._sorted(children)
        except TrackingError as error:
            self.say(f"what MLflow has of this sweep cannot be looked up: {error}")
            return
        numbers = {run.number for run in lost} | {run.number for run in without_record}
        for run in lost:
            self.journal.tell_again(run.number)
        rest = self._write_from_study(without_record, children)
        if again := numbers | rest:
            self._say_of(again, len(rest))
        self._find_weights([*lost, *without_record])

    def _sorted(self, children: list[RunFacts]) -> tuple[list[JournalRun], list[JournalRun]]:
        """The runs that MLflow lacks: those that the journal has whole, and the others."""
        there = {child.token: child for child in children if child.token is not None}
        lost, without_record = [], []
        for run in self.journal.trial_runs():
            child = there.get(run.token)
            if child is not None:
                if (run.run_id, run.sweep_run_id) != (child.run_id, self.sweep_run_id):
                    self.journal.found(run.number, child.run_id, self.sweep_run_id)
                if run.state not in (None, child.status):  # an older copy of the database
                    lost.append(run)
            elif run.run_id is None:
                continue  # it waits to be told for the first time
            elif run.sweep_run_id == self.sweep_run_id and self.tracker.was_deleted(run.run_id):
                self.journal.drop_waiting(run.number)
            elif run.is_kept:
                lost.append(run)
            else:
                without_record.append(run)
        return lost, without_record

    def _write_from_study(
        self, without_record: list[JournalRun], children: list[RunFacts]
    ) -> set[int]:
        """Append what only the study knows; returns the numbers, confirmations below zero."""
        trials = own_trials(self.study, self.driver)
        told = {child.number for child in children if child.kind == "trial"}
        known = {run.number for run in self.journal.trial_runs()}
        gone = {run.number for run in without_record}
        numbers = {n for n in trials if n in gone or (n not in known and n not in told)}
        for number in sorted(numbers):
            write_from_study(self.journal, trials[number], self.objective, self.plan_of)
        for run in sorted(gone - numbers):
            known_as = self.journal.confirmation(run) if run < 0 else None
            if known_as is None or known_as[0] not in trials:
                self.journal.forget(run)
                continue
            write_confirmation_from_study(
                self.journal, run, trials[known_as[0]], self.metric, self.plan_of
            )
            numbers.add(run)
        return numbers

    def _say_of(self, again: set[int], from_study: int) -> None:
        trials = sum(number >= 0 for number in again)
        shown = [_count(trials, "trial"), _count(len(again) - trials, "confirmation run")]
        some = f"; of {from_study} the searched metric is all that is known" if from_study else ""
        self.say(
            f"MLflow lacks {' and '.join(filter(None, shown))} of this sweep; what is known of "
            f"them is logged again{some}"
        )

    def _find_weights(self, lost: list[JournalRun]) -> None:
        """Take the weights of lost runs from where they were logged, for the new runs."""
        before = _RunsBefore(self.tracked_before)
        trials = WeightFiles(self.paths.weights, "trial")
        confirmations = WeightFiles(self.paths.confirmed_weights, "confirmation")
        left, why = [], ""
        for run in lost:
            files = trials if run.number >= 0 else confirmations
            kept = files.file(abs(run.number))
            if kept.is_file() or run.run_id is None or run.state not in (None, "complete"):
                continue
            try:
                weights = self._left_behind(run.run_id, kept.name) or before.weights(run.run_id)
                if weights is None:
                    left.append(run.number)
                else:
                    files.keep(abs(run.number), weights)
            except OSError as error:  # they may not be read, or a disk is full
                left.append(run.number)
                why = f" ({one_line(error)})"
        if left:
            of_trials = sum(number >= 0 for number in left)
            shown = [_count(of_trials, "trial"), _count(len(left) - of_trials, "confirmation run")]
            self.say(
                f"weights that {' and '.join(filter(None, shown))} may have kept stay with their "
                f"earlier runs{why}; the new ones have none"
            )

    def _left_behind(self, run_id: str, name: str) -> bytes | None:
        """What lies among the artifacts of a local database that is gone."""
        databases = (sqlite_file(self.tracker.uri), self.paths.root / "mlflow.db")
        for folder in (artifacts_beside(file) for file in databases if file is not None):
            found = folder / run_id / "artifacts" / name
            if found.is_file():
                return found.read_bytes()
        return None


class _RunsBefore:
    """The runs at `uri`, where the launch before has tracked to; None where that is not known.

    One that does not answer, or no longer, is asked no more: each time would take a while.
    """

    def __init__(self, uri: str | None) -> None:
        self._uri = uri
        self._recorded: RecordedRuns | None = None

    def weights(self, run_id: str) -> bytes | None:
        """The weights of a run; None where it is gone or has none. Raises OSError."""
        if self._uri is None:
            return None
        try:
            if self._recorded is None:
                self._recorded = RecordedRuns(self._uri)
            if self._recorded.find(run_id) is None or WEIGHTS not in self._recorded.files(run_id):
                return None
            return self._recorded.artifact(run_id, WEIGHTS)
        except RefusedError:
            return None
        except (ConfigError, TrackingError):
            self._uri = None
            return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
