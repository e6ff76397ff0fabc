"""The sweeps that MLflow has a record of, and those that this directory has a folder of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import yaml

from search.paths import SweepPaths, check_sweep_name
from search.queries.filters import Filters
from search.queries.rows import BestRow
from search.queries.sweep_summary import Summaries, SweepSummary
from search.tracking.facts import RunFacts
from search.tracking.liveness import fate, running
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, RanksweepError, nearest

State = Literal["running", "gone", "complete", "failed", "interrupted", "unrecorded"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Sweep:
    """One sweep, as MLflow and the folders of this directory have it.

    `state` is `running` also where a launch on another machine has not said that it ended, `gone`
    where its launch here was killed, and `unrecorded` where there is a folder that MLflow has no
    run of. `trials` are those that ran to their end, of `begun` in all; `asked` is how many its
    last launch was to try, None where it has not said. `value` is the best of them on dev, as
    `best` ranks them. `folder` is that of this directory, None where it has none;
    `host` is where it was last launched. `started_ms` and `ended_ms` are in milliseconds of Unix
    time.
    """

    name: str
    state: State
    task: str = ""
    base_uri: str = ""
    trials: int = 0
    begun: int = 0
    asked: int | None = None
    metric: str | None = None
    value: float | None = None
    best_run: str | None = None
    confirmed: int = 0
    started_ms: int | None = None
    ended_ms: int | None = None
    scheduled_by: str | None = None
    run_id: str | None = None
    experiment_id: str | None = None
    host: str | None = None
    folder: Path | None = None


def sweeps(
    tracking_uri: str | None,
    root: Path,
    *,
    task: str | None = None,
    state: str | None = None,
    where: Filters | None = None,
) -> list[Sweep]:
    """Those of a task, in a state and that meet `where`, the newest first; `root` is the
    `.ranksweep` of a directory.

    Where trials are asked for, by their method or what they take, a sweep's best is the best of
    those, and one without such a trial is left out. Without a tracking URI, or where nothing is
    asked that only MLflow knows, sweeps that have a folder alone are among them. Raises ConfigError
    for an unknown state, TrackingError where MLflow cannot be read.
    """
    if state is not None and state not in STATES:
        raise ConfigError(f"--state: {state!r} is no state of a sweep; {nearest(state, STATES)}")
    filters = where or Filters()
    found: list[Sweep] = []
    known: set[Path | None] = set()
    if tracking_uri is not None:
        found, known = _recorded(tracking_uri, root, task, filters)
    if replace(filters, sweep=None, base=None) == Filters():
        found += [each for each in _in_folders(root) if each.folder not in known]
    return [
        each
        for each in found
        if task in (None, each.task)
        and state in (None, each.state)
        and filters.sweep in (None, each.name)
        and (each.run_id is not None or filters.is_of_base("", each.base_uri))
    ]


def sweep_called(tracking_uri: str | None, root: Path, name: str) -> Sweep:
    """The newest sweep of a name, or that of a run id. Raises RanksweepError without one."""
    if tracking_uri is not None:
        recorded = RecordedRuns(tracking_uri)
        experiments = recorded.experiments()
        every = recorded.search({"kind": "sweep"}, experiments)
        run = next((each for each in every if name in (each.sweep, each.run_id)), None)
        if run is not None:
            same = [each for each in every if each.task == run.task]
            summaries = Summaries(recorded, experiments, same)
            newest = next(each for each in every if each.sweep == run.sweep)
            folder = _folder(root, run.sweep) if newest is run else None
            _, best = summaries.leaders([run.run_id]).get(run.run_id, (None, None))
            return _of_run(run, summaries.of(run.run_id), best, folder)
    else:
        every = []
    folders = _in_folders(root)
    found = next((each for each in folders if each.name == name), None)
    if found is None:
        names = sorted({each.sweep for each in every} | {each.name for each in folders})
        hint = nearest(name, names) if names else "there is none"
        raise RanksweepError(
            f"NAME: no sweep {name[:80]!r} is in MLflow or in {root}; {hint}; "
            "`ranksweep sweeps list` shows them"
        )
    return found


# -- MLflow ----------------------------------------------------------------------------------------


def _recorded(
    tracking_uri: str, root: Path, task: str | None, filters: Filters
) -> tuple[list[Sweep], set[Path | None]]:
    """The sweeps that meet the filters, and the folders of all that MLflow has of the task."""
    recorded = RecordedRuns(tracking_uri)
    experiments = recorded.experiments()
    wanted = {"kind": "sweep"} | ({} if task is None else {"task": task})
    every = recorded.search({"kind": "sweep"}, experiments)
    folders: dict[str, Path | None] = {}
    for run in every:  # the folder of a name is that of the newest sweep of it
        folders.setdefault(run.sweep, _folder(root, run.sweep))
    owners = {run.sweep: run.run_id for run in reversed(every)}
    # The noise is of all sweeps of the tasks, also of those that are not shown.
    summaries = Summaries(recorded, experiments, every)
    met = every
    if asked := filters.of_sweeps():
        met = recorded.search(wanted, experiments, where=asked)
    met = [run for run in met if task in (None, run.task) and filters.is_on(run)]
    bests = summaries.bests([run.run_id for run in met], task, filters)
    if filters.looks_into_trials or filters.method is not None:
        met = [run for run in met if run.run_id in bests]
    found = []
    for run in met:
        folder = folders[run.sweep] if owners[run.sweep] == run.run_id else None
        _, best = bests.get(run.run_id, (None, None))
        found.append(_of_run(run, summaries.of(run.run_id), best, folder))
    return found, set(folders.values())


def _of_run(
    run: RunFacts, summary: SweepSummary, best: BestRow | None, folder: Path | None
) -> Sweep:
    return Sweep(
        name=run.sweep,
        state=_state(run, folder),
        task=run.task,
        base_uri=run.base_uri,
        trials=summary.complete,
        begun=summary.begun,
        asked=run.trials,
        metric=run.metric if best is None else best.metric,
        value=None if best is None else best.value,
        best_run=None if best is None else best.run_id,
        confirmed=summary.confirmed,
        started_ms=run.started_ms,
        ended_ms=run.ended_ms,
        scheduled_by=run.scheduled_by,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        host=run.host,
        folder=folder,
    )


def _state(run: RunFacts, folder: Path | None) -> State:
    match fate(run):
        case "gone":
            return "gone"
        case "unknown" if run.host is None and folder is not None:
            # An older ranksweep did not say where it launches; here is its folder.
            its = SweepPaths(folder.parents[1], folder.name)
            return "gone" if running(its) is None else "running"
        case "runs" | "unknown":
            return "running"
    for state in ("complete", "failed"):
        if run.status == state:
            return state
    return "interrupted"


# -- folders ---------------------------------------------------------------------------------------


def _folder(root: Path, name: str) -> Path | None:
    try:
        folder = SweepPaths(root, check_sweep_name(name)).sweep
    except ConfigError:  # recorded by something else
        return None
    return folder if folder.is_dir() else None


def _in_folders(root: Path) -> list[Sweep]:
    """Every sweep that has a folder, the newest first."""
    place = root / "sweeps"
    folders = [each for each in place.iterdir() if each.is_dir()] if place.is_dir() else []
    folders.sort(key=lambda each: -each.stat().st_mtime)
    return [_of_folder(root, each) for each in folders if _folder(root, each.name) is not None]


def _of_folder(root: Path, folder: Path) -> Sweep:
    paths = SweepPaths(root, folder.name)
    try:
        told = yaml.safe_load(paths.sweep_file.read_text())
        task, base = str(told["task"]["name"]), str(told["base"])
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        task, base = "", ""
    state: State = "running" if running(paths) is not None else "unrecorded"
    return Sweep(folder.name, state, task, base, folder=folder)
