"""The record of a sweep whose launch is gone, closed in MLflow."""

from __future__ import annotations

import yaml

from search.paths import SweepPaths
from search.redaction import redacted
from search.tracking.facts import RunFacts
from search.tracking.liveness import launch_of
from search.tracking.mlflow import sqlite_file
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, JobError, TrackingError

ENDED_WITHOUT_A_WORD = "its launch ended without a word"


def tracking_of(paths: SweepPaths) -> str | None:
    """Where a sweep of this folder was last logged; None where its file does not say it whole."""
    try:
        sweep = yaml.safe_load(paths.sweep_file.read_text())
        uri = sweep["tracking"]["uri"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return None
    return None if "***" in uri else str(uri)


def close_what_is_gone(paths: SweepPaths, tracking_uri: str, *, gone: bool = False) -> list[str]:
    """Close as interrupted the runs of this sweep that MLflow takes for running and nobody runs.

    The caller has seen that nobody holds the lock of the sweep in its folder here. `gone` says that
    its launch is known to be dead, where that cannot be told from here. Returns the run ids of the
    sweeps that were closed.

    Raises:
        ConfigError: there is no such sweep, or it may be running elsewhere.
        JobError: it has ended.
        TrackingError: MLflow cannot be asked.
    """
    database = sqlite_file(tracking_uri)
    if database is not None and not database.exists():
        raise _unknown(paths, tracking_uri)
    try:
        recorded = RecordedRuns(tracking_uri)
        experiments = recorded.experiments()
        runs = recorded.search({"kind": "sweep", "sweep": str(paths.name)}, experiments)
    except TrackingError as error:
        if not paths.sweep.is_dir():
            raise
        raise JobError(
            f"the sweep {paths.name!r} is not running; what MLflow has of it is unknown ({error})"
        ) from error
    if not runs:
        raise _unknown(paths, tracking_uri)
    trackers = {
        key: Tracker(tracking_uri, experiments[key], writes_files=False)
        for key in {run.experiment_id for run in runs}
    }
    left = [run for run in runs if _is_left_open(run, trackers[run.experiment_id])]
    if not left:
        raise JobError(
            f"the sweep {paths.name!r} has ended ({runs[0].status}) and is not running; there is "
            "nothing to stop"
        )
    if not gone:
        for run in left:
            _refuse_elsewhere(run, paths)
    for run in left:
        tracker = trackers[run.experiment_id]
        tracker.close_interrupted(run.run_id)
        if run.status == "running":
            tracker.end(run.run_id, "interrupted", error=ENDED_WITHOUT_A_WORD)
    return [run.run_id for run in left]


def _is_left_open(run: RunFacts, tracker: Tracker) -> bool:
    """A launch that was told to end closes its sweep first, and may not come to its trials."""
    if run.status != "interrupted":
        return run.status == "running"
    return any(child.is_open for child in tracker.children(run.run_id))


def _unknown(paths: SweepPaths, tracking_uri: str) -> ConfigError | JobError:
    if paths.sweep.is_dir():
        return JobError(
            f"the sweep {paths.name!r} is not running, and {redacted(tracking_uri)} has no record "
            "of it; there is nothing to stop"
        )
    return ConfigError(
        f"SWEEP: there is no sweep {paths.name!r} in {paths.root} nor in MLflow; run this where it "
        "was launched, with the name of its sweep"
    )


def _refuse_elsewhere(run: RunFacts, paths: SweepPaths) -> None:
    what = launch_of(run)
    # An older ranksweep did not say where it launches; here is its folder, and nobody runs it.
    if what == "gone" or (run.host is None and paths.sweep.is_dir()):
        return
    where = f" on {run.host} in {run.folder}" if run.host else " elsewhere"
    if what == "runs":
        raise ConfigError(f"SWEEP: {run.sweep!r} runs{where}; stop it there")
    raise ConfigError(
        f"SWEEP: {run.sweep!r} was launched{where} and may run there; stop it there, or close its "
        "record with --gone if its launch is known to be dead"
    )
