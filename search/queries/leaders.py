"""The best trials of a task, of which no more are read than the answer needs.

A choice that was measured once holds its value less the noise of its sweep. So once as many are
known as are asked for, any other that belongs before them has a value above a bound, and MLflow is
asked for those alone, until all that are above it are known. What was measured more than once is
told by the sweeps' own runs. The result is that of reading every trial, and it takes some hundreds.

The bound rests on the noise of the sweeps that MLflow has the runs of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.objective import Objective
from search.queries.filters import Filters
from search.queries.rows import BestRow, front_of
from search.queries.sweep_summary import Summaries
from search.tracking.conditions import Bound, Condition, Text
from search.tracking.facts import PREFIX, RunFacts
from search.tracking.runs import RecordedRuns

FIRST, PAGE = 50, 150
"""Trials that are read before there is a bound, and above one at a time."""


class Leaders:
    """The best trials of a task that meet filters.

    `is_told` says whether this way to them is open: all sweeps on the data of the newest trial were
    searched by one metric, and there are more than `first` trials.
    """

    def __init__(
        self,
        recorded: RecordedRuns,
        task: str,
        filters: Filters,
        *,
        first: int = FIRST,
        page: int = PAGE,
    ) -> None:
        self._recorded, self._task, self._filters = recorded, task, filters
        self._page = page
        self._experiments = recorded.experiments()
        sweeps = recorded.search({"kind": "sweep", "task": task}, self._experiments)
        self.sweeps: Sequence[RunFacts] = sweeps
        """Those of the task, newest first."""
        self._summaries = Summaries(recorded, self._experiments, sweeps)
        self._known: dict[str, RunFacts] = {}
        self._where = filters.who()
        self.is_told = False
        wanted = {"kind": "trial", "status": "complete", "task": task}
        newest = recorded.search(wanted, self._experiments, at_most=first)
        if len(newest) == first:
            is_all = filters.base is None and not self._where
            self._begin(first, newest if is_all else self._read(self._where, first))

    def _begin(self, first: int, newest: Sequence[RunFacts]) -> None:
        self._all_read = len(newest) < first
        self._take(newest)
        rows = [row for run in self._newest_first() if (row := self._summaries.row(run))]
        if not rows:
            return
        self.data = rows[0].data
        """The fingerprint of the data that the newest trial is on."""
        self._objective = Objective(rows[0].metric, rows[0].mode)
        told = {(row.metric, row.mode) for row in rows if row.data == self.data}
        its = [run for run in self.sweeps if self._summaries.data_of(run) == self.data]
        its = [run for run in its if self._filters.is_of_base(run.base, run.base_uri)]
        told |= {(run.metric or "", run.mode or "max") for run in its if self._has_trials(run)}
        names = {run.task_fingerprint for run in its}
        names |= {row.task_fingerprint for row in rows if row.data == self.data}
        if what := self._filters.what():
            self._where = [*self._where, *what]
            fewer = self._read(self._where, first)
            self._all_read = len(fewer) < first
            self._known.clear()
            self._take(fewer)
        if len(names) == 1 and (name := next(iter(names))) is not None:
            self._where = [*self._where, Text(PREFIX + "task_fingerprint", name)]
        self._its = [run.run_id for run in its]
        self.is_told = len(told) == 1

    def others(self) -> dict[str | None, str]:
        """Data that is left out -> how many sweeps over it have complete trials, in words."""
        counts: dict[str | None, int] = {}
        for run in self.sweeps:
            data = self._summaries.data_of(run)
            asked = self._filters
            is_on = asked.is_of_base(run.base, run.base_uri) and asked.sweep in (None, run.sweep)
            if data != self.data and is_on and self._has_trials(run):
                counts[data] = counts.get(data, 0) + 1
        return {data: f"{n} sweep{'' if n == 1 else 's'}" for data, n in counts.items()}

    def warm(self) -> int:
        """How many complete trials started from the weights of another."""
        wanted = {"kind": "trial", "status": "complete", "task": self._task}
        where = [Text(f"{PREFIX}warm_from", "", "starts")]
        return len(self._recorded.search(wanted, self._experiments, where=where))

    def top(self, count: int) -> list[BestRow]:
        """The best, best first."""
        return self._top(count, [])

    def front(self) -> list[BestRow]:
        """Those that no other beats in metric or parameters without losing in the other."""
        found: list[BestRow] = []
        most: int | None = None
        while most is None or most > 0:
            smaller = [] if most is None else [Bound("trainable_params", most=most)]
            best = self._top(1, smaller)
            if not best:
                break
            if best[0].collapsed and found:
                break  # however small, it has learned nothing
            # Those that equal it in both are on the front with it.
            found += [each for each in self._ranked(most) if each.rank == best[0].rank]
            most = best[0].trainable_params - 1
        return front_of(sorted(found, key=lambda row: row.rank))

    # -- reading ------------------------------------------------------------------------------

    def _has_trials(self, run: RunFacts) -> bool:
        return self._summaries.of(run.run_id).complete > 0

    def _read(self, where: Sequence[Condition], at_most: int | None = None) -> list[RunFacts]:
        wanted = {"kind": "trial", "status": "complete", "task": self._task}
        found: dict[str, RunFacts] = {}
        for base in self._filters.of_bases():
            runs = self._recorded.search(
                wanted, self._experiments, where=[*where, *base], at_most=at_most
            )
            found |= {run.run_id: run for run in runs}
        if at_most is None:
            return list(found.values())
        return sorted(found.values(), key=lambda run: -run.started_ms)[:at_most]

    def _take(self, runs: Sequence[RunFacts]) -> None:
        self._known |= {run.run_id: run for run in runs}

    def _newest_first(self) -> list[RunFacts]:
        """The known trials, each once: one of two that carry its token is the newer."""
        runs = sorted(self._known.values(), key=lambda run: (-run.started_ms, run.run_id))
        seen: dict[str, RunFacts] = {}
        for run in runs:
            seen.setdefault(run.token or run.run_id, run)
        return list(seen.values())

    def _ranked(self, most: int | None) -> list[BestRow]:
        rows = [
            row
            for run in self._newest_first()
            if (row := self._summaries.row(run)) is not None and row.data == self.data
        ]
        kept = [row for row in rows if most is None or row.trainable_params <= most]
        return sorted(kept, key=lambda row: row.rank)

    def _top(self, count: int, more: Sequence[Bound]) -> list[BestRow]:
        most = next((int(each.most) for each in more if each.most is not None), None)
        where, bound = [*self._where, *more], None
        while not self._all_read:
            level = self._level(count, most)
            if level is None:
                self._take(self._read(where))
                break
            is_stuck = level == bound  # a page of trials has brought none that is nearer
            at_most = None if is_stuck else self._page
            found = self._read([*where, self._beyond(level)], at_most)
            self._take(found)
            if at_most is None or len(found) < at_most:
                break
            bound = level
        self._take_held(count, most, more)
        return self._ranked(most)[:count]

    def _level(self, count: int, most: int | None) -> float | None:
        """What a trial has to have, of which more is better, to belong to so many; None while as
        many are not known."""
        whole = [row for row in self._ranked(most) if not row.collapsed][:count]
        if len(whole) < count:
            return None
        least = min(
            (self._summaries.noise(run_id, whole[-1]) for run_id in self._parents()), default=0.0
        )
        return self._objective.gain(whole[-1].holds) + least

    def _parents(self) -> set[str | None]:
        return {*self._its, *(run.parent for run in self._known.values())}

    def _beyond(self, level: float) -> Bound:
        # A sum of floats may miss the value by its last digit.
        slack = 1e-9 * max(1.0, abs(level))
        if self._objective.mode == "max":
            return Bound(self._objective.metric, least=level - slack)
        return Bound(self._objective.metric, most=slack - level)

    def _take_held(self, count: int, most: int | None, more: Sequence[Bound]) -> None:
        """Take the choices that were measured more than once and may belong to so many."""
        ranked = [row for row in self._ranked(most) if not row.collapsed][:count]
        level = self._objective.gain(ranked[-1].holds) if len(ranked) == count else None
        wanted = []
        for run_id in self._its:
            for held in self._summaries.of(run_id).held:
                # The noise of the sweep can only widen what the seeds themselves say.
                best = self._objective.gain(held.seeds.holds(0.0, self._objective))
                if held.run_id not in self._known and (level is None or best >= level):
                    wanted.append(held.run_id)
        where = [*self._where, *more, Text(PREFIX + "task", self._task)]
        found: Mapping[str, RunFacts] = {}
        for base in self._filters.of_bases():
            found = {**found, **self._summaries.runs(wanted, [*where, *base])}
        self._take(list(found.values()))
