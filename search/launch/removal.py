"""A sweep taken away: its folder, and its runs in MLflow where that is wanted."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from search.launch.sweep_lock import refuse_running
from search.paths import SweepPaths
from search.queries.sweeps import Sweep, sweep_called
from search.tracking.liveness import lock_of
from search.tracking.registry import Registry
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, RanksweepError


@dataclass(frozen=True)
class Removed:
    """What was taken away of a sweep: its folder, None where it had none, and its runs in MLflow by
    id, which `mlflow runs restore` can bring back until MLflow's own `gc`."""

    name: str
    folder: Path | None
    runs: tuple[str, ...]


def remove_sweep(
    tracking_uri: str | None, root: Path, name: str, *, records: bool = False
) -> Removed:
    """Take away a sweep that does not run: its folder, with `records` its runs in MLflow too.

    Profiles stay: they are in the store, and their runs are those of other sweeps too. `name` is a
    sweep's name, of which the newest is meant, or its run id.

    Raises:
        ConfigError: it runs, or may do so on another machine; or a run of it is a champion.
        RanksweepError: there is no such sweep, or the folder cannot be taken away.
        TrackingError: MLflow cannot be read or written.
    """
    sweep = sweep_called(tracking_uri, root, name)
    _refuse_running(sweep, root)
    if tracking_uri is not None and sweep.run_id is not None:
        _refuse_champion(tracking_uri, sweep)
    if records and (tracking_uri is None or sweep.run_id is None):
        raise ConfigError(f"--records: MLflow has no record of {sweep.name!r}; leave it out")
    if not records and sweep.folder is None:
        raise ConfigError(
            f"NAME: {sweep.name!r} has no folder in {root}; --records removes its runs in MLflow"
        )
    if sweep.folder is not None:
        _remove_folder(SweepPaths(root, sweep.name))
    runs: tuple[str, ...] = ()
    if records and tracking_uri is not None:
        runs = _delete_runs(tracking_uri, sweep)
    return Removed(sweep.name, sweep.folder, runs)


def _refuse_running(sweep: Sweep, root: Path) -> None:
    if sweep.folder is not None:
        refuse_running(SweepPaths(root, sweep.name))
    if sweep.state == "running":
        where = f" on {sweep.host}" if sweep.host else ""
        raise ConfigError(
            f"NAME: {sweep.name!r} runs{where}, or its launch there is gone; stop it first "
            f"(`ranksweep stop {sweep.name}`, with --gone where its launch is known to be dead)"
        )


def _refuse_champion(tracking_uri: str, sweep: Sweep) -> None:
    registry = Registry(tracking_uri)
    for model in registry.models():
        version = None if model.champion is None else registry.champion(model.name)
        if version is not None and version.tags.get("sweep_run") == sweep.run_id:
            raise ConfigError(
                f"NAME: a run of {sweep.name!r} is the champion of {model.name} (version "
                f"{version.number}); promote another first, or take the alias champion off it"
            )


def _remove_folder(paths: SweepPaths) -> None:
    try:
        with lock_of(paths):  # a launch that begins now finds the sweep taken, not half gone
            shutil.rmtree(paths.sweep)
    except Timeout:
        refuse_running(paths)
        raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RanksweepError(
            f"NAME: {paths.sweep} cannot be taken away whole ({reason}); do so by hand"
        ) from error


def _delete_runs(tracking_uri: str, sweep: Sweep) -> tuple[str, ...]:
    """Delete the runs of its trials and confirmations, and its own last: what is left of a deletion
    that fails is found again by its name."""
    assert sweep.run_id is not None, "asked before"
    recorded = RecordedRuns(tracking_uri)
    own = recorded.find(sweep.run_id)
    assert own is not None, "it was just read"
    tracker = Tracker(tracking_uri, recorded.experiments()[own.experiment_id], writes_files=False)
    children = [run.run_id for run in tracker.children(own.run_id) if run.kind != "profile"]
    for run_id in (*children, own.run_id):
        tracker.delete(run_id)
    return (own.run_id, *children)
