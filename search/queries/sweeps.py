"""The sweeps that MLflow has a record of, and those that this directory has a folder of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import yaml

from search.paths import SweepPaths, check_sweep_name
from search.queries.best import BestRow, rows_of
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
    run of. `trials` are those that ran to their end, of `begun` in all; `value` is the best of
    them on dev, as `best` ranks them. `folder` is that of this directory, None where it has none;
    `host` is where it was last launched. `started_ms` and `ended_ms` are in milliseconds of Unix
    time.
    """

    name: str
    state: State
    task: str = ""
    base_uri: str = ""
    trials: int = 0
    begun: int = 0
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
) -> list[Sweep]:
    """Those of a task, and in a state, the newest first; `root` is the `.ranksweep` of a directory.

    Without a tracking URI they are those that have a folder. Raises ConfigError for an unknown
    state, TrackingError where MLflow cannot be read.
    """
    if state is not None and state not in STATES:
        raise ConfigError(f"--state: {state!r} is no state of a sweep; {nearest(state, STATES)}")
    found = [*_recorded(tracking_uri, root)] if tracking_uri is not None else []
    known = {each.folder for each in found}
    found += [each for each in _in_folders(root) if each.folder not in known]
    return [
        each
        for each in found
        if (task is None or each.task == task) and (state is None or each.state == state)
    ]


def sweep_called(tracking_uri: str | None, root: Path, name: str) -> Sweep:
    """The newest sweep of a name, or that of a run id. Raises RanksweepError without one."""
    every = sweeps(tracking_uri, root)
    found = next((each for each in every if name in (each.name, each.run_id)), None)
    if found is None:
        names = sorted({each.name for each in every})
        hint = nearest(name, names) if names else "there is none"
        raise RanksweepError(
            f"NAME: no sweep {name[:80]!r} is in MLflow or in {root}; {hint}; "
            "`ranksweep sweeps list` shows them"
        )
    return found


# -- MLflow ----------------------------------------------------------------------------------------


def _recorded(tracking_uri: str, root: Path) -> list[Sweep]:
    every = RecordedRuns(tracking_uri)
    experiments = every.experiments()
    trials = every.search({"kind": "trial"}, experiments)
    runs: dict[str | None, list[RunFacts]] = {}
    confirmed = every.search({"kind": "confirm"}, experiments)
    for run in (*trials, *confirmed):
        runs.setdefault(run.parent, []).append(run)
    complete = [(experiments[run.experiment_id], run) for run in trials if run.status == "complete"]
    ranked: dict[str | None, list[BestRow]] = {}
    done = [run for run in confirmed if run.status == "complete"]
    for sweep_run, row in rows_of(complete, confirmed=done):
        ranked.setdefault(sweep_run, []).append(row)
    seen: set[str] = set()
    found = []
    for run in every.search({"kind": "sweep"}, experiments):
        # The folder of a name is that of the newest sweep of it.
        folder = None if run.sweep in seen else _folder(root, run.sweep)
        seen.add(run.sweep)
        best = min(ranked.get(run.run_id, []), key=lambda row: row.rank, default=None)
        found.append(_of_run(run, runs.get(run.run_id, []), best, folder))
    return found


def _of_run(
    run: RunFacts, children: Sequence[RunFacts], best: BestRow | None, folder: Path | None
) -> Sweep:
    trials = [each for each in children if each.kind == "trial"]
    return Sweep(
        name=run.sweep,
        state=_state(run, folder),
        task=run.task,
        base_uri=run.base_uri,
        trials=sum(each.status == "complete" for each in trials),
        begun=len(trials),
        metric=run.metric if best is None else best.metric,
        value=None if best is None else best.value,
        best_run=None if best is None else best.run_id,
        confirmed=sum(each.kind == "confirm" and each.status == "complete" for each in children),
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
