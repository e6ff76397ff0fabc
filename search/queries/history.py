"""How the best of a task has moved over its sweeps, base by base, from MLflow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from search.objective import Mode
from search.queries.champions import Champion, base_name, promoted
from search.queries.filters import Filters
from search.queries.rows import BestRow
from search.queries.sweep_summary import Leader, Summaries
from search.tracking.facts import RunFacts
from search.tracking.liveness import fate
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, nearest


@dataclass(frozen=True)
class Step:
    """What one sweep has found best of a task on one base.

    `value` is on dev, and `holds` what is relied on of it (search/queries/holding.py), `test` the
    mean over `seeds` confirmations of that choice, None where there are none. `is_best` says that
    no earlier sweep on the same base and data was better; `data` names the data, and values over
    others cannot be compared. `champion` is the version of the registered model that a choice of
    the sweep became, None where none did; `reigns` says that it is champion now. `started_ms` is in
    milliseconds of Unix time. `state` says how the sweep has ended, that it is `running` (also one
    on another machine that has not said that it ended) or `gone`. `base_name` is what the base is a
    version of, where its sweep says so: then all of that name are taken for one base.
    """

    base: str
    base_uri: str
    base_name: str | None
    sweep: str
    sweep_run: str
    started_ms: int | None
    run_id: str
    method: str
    metric: str
    mode: Mode
    value: float
    holds: float
    test: float | None
    seeds: int
    is_best: bool
    data: str | None
    champion: int | None
    reigns: bool
    scheduled_by: str | None
    state: str = "complete"

    @property
    def group(self) -> str:
        """What is the same of the steps that are told together, as of one base."""
        return self.base_name or self.base


def history(
    tracking_uri: str,
    task: str,
    *,
    base: str | None = None,
    top: int | None = None,
    where: Filters | None = None,
) -> list[Step]:
    """The best of each sweep of a task, base by base, the oldest first.

    `base` is the start of a base's fingerprint, or a part of its URI or of its name; `where` tells
    of which trials the best is wanted, and when their sweeps were started: one without such a trial
    is left out. Of each base the `top` newest sweeps are given. Raises ConfigError where `top` is
    below 1, TrackingError where MLflow cannot be read.
    """
    if top is not None and top < 1:
        raise ConfigError(f"--top: {top} is not a number of sweeps; use 1 or more")
    filters = where or Filters()
    filters = filters if base is None else replace(filters, base=base)
    every = RecordedRuns(tracking_uri)
    experiments = every.experiments()
    sweeps = every.search({"kind": "sweep", "task": task}, experiments)
    # The noise is of all sweeps, also of those that are not shown.
    summaries = Summaries(every, experiments, sweeps)
    met: Sequence[RunFacts] = sweeps
    if asked := filters.of_sweeps():
        met = every.search({"kind": "sweep", "task": task}, experiments, where=asked)
    wanted = {run.run_id: run for run in met if filters.is_on(run)}
    found = summaries.bests(list(wanted), task, filters)
    crowned = promoted(tracking_uri, task) if found else []
    steps = [_step(row, leader, wanted[each], crowned) for each, (leader, row) in found.items()]
    steps.sort(key=lambda step: (step.base_name or step.base_uri, step.group, step.started_ms or 0))
    return _newest_of_each(_with_bests(steps), top)


def why_none(
    tracking_uri: str, task: str, base: str | None = None, where: Filters | None = None
) -> str:
    """Where `history` finds nothing: what there is instead, in one line."""
    every = RecordedRuns(tracking_uri)
    sweeps = every.search({"kind": "sweep"}, every.experiments())
    of_task = [run for run in sweeps if run.task == task]
    if not of_task:
        tasks = sorted({run.task for run in sweeps} - {""})
        hint = nearest(task, tasks) if tasks else "there is none of any task"
        return f"TASK: no sweep of task {task!r} is recorded; {hint}"
    wanted = base if base is not None or where is None else where.base
    if wanted is not None and not any(Filters(base=wanted).is_on(run) for run in of_task):
        bases = ", ".join(sorted({run.base_uri for run in of_task}))
        return f"--base: no sweep of task {task!r} is on {wanted!r}; they are on {bases}"
    if where not in (None, Filters()):
        return (
            f"TASK: none of the {len(of_task):,} sweeps of task {task!r} has a trial that meets all"
        )
    return f"TASK: no trial of task {task!r} is complete"


def _step(best: BestRow, leader: Leader, sweep: RunFacts, crowned: Sequence[Champion]) -> Step:
    versions = [each for each in crowned if each.sweep_run == sweep.run_id]
    return Step(
        base=best.base,
        base_uri=best.base_uri,
        base_name=base_name(best.base_uri, sweep.base_name) if sweep.base_name else None,
        sweep=sweep.sweep,
        sweep_run=sweep.run_id,
        started_ms=sweep.started_ms,
        run_id=best.run_id,
        method=best.method,
        metric=best.metric,
        mode=best.mode,
        value=best.value,
        holds=best.holds,
        test=fmean(leader.on_test) if leader.on_test else None,
        seeds=len(leader.on_test),
        is_best=False,
        data=best.data,
        champion=versions[0].version if versions else None,
        reigns=any(each.is_champion for each in versions),
        scheduled_by=sweep.scheduled_by,
        state=state_of(sweep),
    )


def state_of(sweep: RunFacts) -> str:
    """How a sweep has ended, `running`, or `gone` where its launch here was killed."""
    match fate(sweep):
        case "gone":
            return "gone"
        case "ended":
            return sweep.status or "interrupted"
        case _:
            return "running"


def _with_bests(steps: Sequence[Step]) -> list[Step]:
    """The steps, with those marked that are better than all before them on their base and data."""
    best: dict[tuple[str, str | None, str], float] = {}
    marked = []
    for step in steps:
        key = step.group, step.data, step.metric
        gain = step.holds if step.mode == "max" else -step.holds
        is_best = gain > best.get(key, float("-inf"))
        best[key] = max(gain, best.get(key, float("-inf")))
        marked.append(replace(step, is_best=is_best))
    return marked


def _newest_of_each(steps: Sequence[Step], top: int | None) -> list[Step]:
    if top is None:
        return list(steps)
    of_base: dict[str, list[Step]] = {}
    for step in steps:
        of_base.setdefault(step.group, []).append(step)
    return [step for each in of_base.values() for step in each[-top:]]
