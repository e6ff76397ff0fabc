"""What queries over many sweeps need of each, so that they need not read its trials.

A sweep's run has it as the tag `summary` once its launch has ended. Of one that has no such tag, as
one that runs, or of an older ranksweep, the trials are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from search.queries.filters import Filters
from search.queries.holding import Seeds, noise_of
from search.queries.rows import BestRow, holding, measured, row_of_run, rows_of
from search.tracking.conditions import LONGEST_TAG, AnyOf, Condition
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns

VERSION = 1


@dataclass(frozen=True)
class Held:
    """A choice that was measured more than once: its first run, and what all have measured on dev,
    of which the first `trials` are of the search and the others confirm it."""

    run_id: str
    trials: int
    seeds: Seeds
    suite: Mapping[str, float] = field(default_factory=dict)

    def row(self, of_first: BestRow) -> BestRow:
        """The choice's row, of which the first run has the rest."""
        if self.trials == 1:
            return of_first
        value = sum(self.seeds.values[: self.trials]) / self.trials
        return replace(of_first, value=value, seeds=self.trials, suite=self.suite)


@dataclass(frozen=True)
class Leader:
    """A method's best choice: its first run, and the test metric of each seed that confirms it."""

    method: str
    run_id: str
    on_test: tuple[float, ...] = ()


@dataclass(frozen=True)
class SweepSummary:
    """How many trials a sweep has, `begun` and `complete`, and `confirmed` runs; the `leaders`,
    best first, one a method, and what tells the noise between seeds."""

    begun: int = 0
    complete: int = 0
    confirmed: int = 0
    leaders: tuple[Leader, ...] = ()
    held: tuple[Held, ...] = ()

    @cached_property
    def noise(self) -> float:
        """Between the seeds of its choices; 0 where none was measured twice."""
        return noise_of(each.seeds for each in self.held)

    def as_tag(self) -> str | None:
        """As text, None where that is longer than a tag may be."""
        told = {
            "version": VERSION,
            "trials": [self.begun, self.complete, self.confirmed],
            "leaders": [[each.method, each.run_id, each.on_test] for each in self.leaders],
            "held": [
                [each.run_id, each.trials, each.seeds.values, each.seeds.collapsed, each.suite]
                for each in self.held
            ],
        }
        text = json.dumps(told, separators=(",", ":"))
        return text if len(text) < LONGEST_TAG - 1 else None


def summary_of(children: Sequence[RunFacts]) -> SweepSummary:
    """A sweep's, by its runs, newest first."""
    trials = [run for run in children if run.kind == "trial"]
    done = [run for run in children if run.kind == "confirm" and run.status == "complete"]
    complete = [run for run in trials if run.status == "complete"]
    ranked = [("", run) for run in complete if run.warm_from is None]
    rows = [row for _, row in rows_of(ranked, confirmed=done)]
    leaders: dict[str, Leader] = {}
    for row in sorted(rows, key=lambda row: row.rank):
        if row.method not in leaders:
            leaders[row.method] = Leader(row.method, row.run_id, tuple(_on_test(row, done)))
    held = (
        Held(each.row.run_id, each.row.seeds, each.seeds, each.row.suite)
        for each in measured(ranked, confirmed=done)
        if len(each.seeds.values) > 1
    )
    return SweepSummary(len(trials), len(complete), len(done), tuple(leaders.values()), tuple(held))


def _on_test(row: BestRow, confirmed: Iterable[RunFacts]) -> list[float]:
    name = f"test_{row.metric}"
    by_seed: dict[int | None, float] = {}
    for run in confirmed:
        if run.choice == row.choice and name in run.metrics:
            by_seed.setdefault(run.seed, run.metrics[name])
    return list(by_seed.values())


def told_by(run: RunFacts) -> SweepSummary | None:
    """What the run of a sweep says itself; None where its trials have to be read."""
    if run.summary is None or run.status in (None, "running"):
        return None
    try:
        told: dict[str, Any] = json.loads(run.summary)
        if told["version"] != VERSION:
            return None
        begun, complete, confirmed = told["trials"]
        leaders = tuple(Leader(m, run_id, tuple(seen)) for m, run_id, seen in told["leaders"])
        held = tuple(
            Held(run_id, trials, Seeds(values, collapsed), suite)
            for run_id, trials, values, collapsed, suite in told["held"]
        )
    except (ValueError, KeyError, TypeError):  # written over by hand
        return None
    return SweepSummary(begun, complete, confirmed, leaders, held)


class Summaries:
    """Those of sweeps of one tracking server, each told by its run or read once."""

    def __init__(
        self, recorded: RecordedRuns, experiments: Mapping[str, str], sweeps: Sequence[RunFacts]
    ) -> None:
        self._recorded, self._experiments = recorded, experiments
        self.sweeps = {run.run_id: run for run in sweeps}
        """The sweeps, by run id."""
        self.same = {
            run.task_fingerprint: run.data_fingerprint for run in sweeps if run.data_fingerprint
        }
        """Fingerprint of a task -> that of its data."""
        self._known: dict[str | None, SweepSummary] = {}
        self._noise: dict[tuple[str | None, str | None, str], float] = {}

    def of(self, sweep_run: str | None) -> SweepSummary:
        """That of a sweep's run id, which may be gone; of none, what belongs to no sweep."""
        if sweep_run not in self._known:
            run = self.sweeps.get(str(sweep_run))
            told = None if run is None else told_by(run)
            self._known[sweep_run] = told or summary_of(self._children(sweep_run))
        return self._known[sweep_run]

    def _children(self, sweep_run: str | None) -> list[RunFacts]:
        if sweep_run is None:
            return []
        return self._recorded.search({}, self._experiments, sweep_run)

    def read_again(self, sweep_run: str) -> SweepSummary:
        """That of a sweep, by its trials, whatever its run says."""
        self._known[sweep_run] = summary_of(self._children(sweep_run))
        self._noise.clear()
        return self._known[sweep_run]

    def noise(self, sweep_run: str | None, row: BestRow) -> float:
        """Between the seeds of a sweep's choices; where it has none, of all over the same data."""
        if own := self.of(sweep_run).noise:
            return own
        key = (None, row.data, row.metric)
        if key not in self._noise:
            known = [
                each.seeds
                for run_id, run in self.sweeps.items()
                if self.data_of(run) == row.data and run.metric == row.metric
                for each in self.of(run_id).held
            ]
            self._noise[key] = noise_of(known)
        return self._noise[key]

    def data_of(self, run: RunFacts) -> str | None:
        """The fingerprint of the data that a run is on."""
        return self.same.get(run.task_fingerprint, run.task_fingerprint)

    def row(self, run: RunFacts) -> BestRow | None:
        """The row of a choice by its first run; None of a run that is no first, or not ranked."""
        if run.kind != "trial" or run.status != "complete":
            return None
        if run.repeat is not None or run.warm_from is not None:
            return None
        first = row_of_run(run, self._experiments[run.experiment_id], self.same)
        if first is None:
            return None
        held = {each.run_id: each for each in self.of(run.parent).held}.get(run.run_id)
        seeds = Seeds([first.value], first.collapsed) if held is None else held.seeds
        row = first if held is None else held.row(first)
        return holding(row, seeds, self.noise(run.parent, row))

    def bests(
        self, sweep_runs: Sequence[str], task: str | None, filters: Filters
    ) -> dict[str, tuple[Leader, BestRow]]:
        """Run id of a sweep -> the best of its trials that meet the filters, where one does."""
        if not filters.looks_into_trials:
            return self.leaders(sweep_runs, filters.method)
        # One question for all sweeps in place of one for each.
        asked = replace(filters, since_ms=None, until_ms=None, tags={}, base=None)
        wanted = {"kind": "trial", "status": "complete"} | ({} if task is None else {"task": task})
        where = [*asked.who(), *asked.what()]
        rows: dict[str | None, list[BestRow]] = {}
        for run in self._recorded.search(wanted, self._experiments, where=where):
            if run.parent in sweep_runs and (row := self.row(run)) is not None:
                rows.setdefault(run.parent, []).append(row)
        found: dict[str, tuple[Leader, BestRow]] = {}
        for sweep_run in sweep_runs:
            if sweep_run in rows:
                best = min(rows[sweep_run], key=lambda row: row.rank)
                found[sweep_run] = self._as_leader(sweep_run, best), best
        return found

    def _as_leader(self, sweep_run: str, best: BestRow) -> Leader:
        known = {each.run_id: each for each in self.of(sweep_run).leaders}
        if best.run_id in known:
            return known[best.run_id]
        wanted = {"kind": "confirm", "status": "complete"}
        confirmed = self._recorded.search(wanted, self._experiments, sweep_run)
        return Leader(best.method, best.run_id, tuple(_on_test(best, confirmed)))

    def leaders(
        self, sweep_runs: Sequence[str], method: str | None = None, where: Sequence[Condition] = ()
    ) -> dict[str, tuple[Leader, BestRow]]:
        """Run id of a sweep -> its best choice, of a method where one is named."""
        first = self._leaders(sweep_runs, method, where)
        # A run that was deleted since is no leader any more: its sweep has to be read.
        gone = [each for each in sweep_runs if each not in first and self._leader(each, method)]
        for each in gone:
            self.read_again(each)
        return {**first, **self._leaders(gone, method, where)}

    def _leader(self, sweep_run: str, method: str | None) -> Leader | None:
        found = (each for each in self.of(sweep_run).leaders if method in (None, each.method))
        return next(found, None)

    def _leaders(
        self, sweep_runs: Sequence[str], method: str | None, where: Sequence[Condition]
    ) -> dict[str, tuple[Leader, BestRow]]:
        leaders = {each: found for each in sweep_runs if (found := self._leader(each, method))}
        runs = self.runs([leader.run_id for leader in leaders.values()], where)
        rows: dict[str, tuple[Leader, BestRow]] = {}
        for sweep_run, leader in leaders.items():
            row = self.row(runs[leader.run_id]) if leader.run_id in runs else None
            if row is not None:
                rows[sweep_run] = leader, row
        return rows

    def runs(self, run_ids: Sequence[str], where: Sequence[Condition] = ()) -> dict[str, RunFacts]:
        """The active runs among these that meet all conditions, by run id."""
        found: dict[str, RunFacts] = {}
        for start in range(0, len(run_ids), 200):
            wanted = [AnyOf(run_ids[start : start + 200]), *where]
            some = self._recorded.search({}, self._experiments, where=wanted)
            found |= {run.run_id: run for run in some}
        return found
