"""Whether the launch of a sweep lives: it holds the lock in the sweep's folder until it ends.

A run in MLflow is open until its launch closes it, and a launch that is killed closes nothing. So
the run says where it was launched, and who reads it looks there.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from search.paths import SweepPaths
from search.tracking.facts import RunFacts

Fate = Literal["ended", "runs", "gone", "unknown"]


@dataclass(frozen=True)
class Runner:
    """The process that runs a sweep."""

    pid: int
    host: str


def lock_of(paths: SweepPaths) -> FileLock:
    """The sweep's lock, which is had at once or not at all and ends with its process."""
    return FileLock(paths.lock, timeout=0, mode=0o600, fallback_to_soft=False)


def running(paths: SweepPaths) -> Runner | None:
    """The process that runs the sweep now; None where nobody does."""
    if not paths.lock.exists():
        return None
    try:
        with lock_of(paths):
            return None
    except Timeout:
        return runner_of(paths)


def runner_of(paths: SweepPaths) -> Runner:
    """Who has written that it holds the lock."""
    pid, _, host = paths.lock.read_text().strip().partition(" ")
    # Between the lock and its text there is a moment; 0 is no process.
    return Runner(int(pid) if pid.isdigit() else 0, host or socket.gethostname())


def launched_here(paths: SweepPaths) -> dict[str, str]:
    """The tags of a sweep's run that say where it is launched."""
    return {"host": socket.gethostname(), "folder": str(paths.sweep)}


def fate(run: RunFacts) -> Fate:
    """What has become of the launch of a sweep's run; unknown where it ran on another machine."""
    return "ended" if run.status != "running" else launch_of(run)


def launch_of(run: RunFacts) -> Fate:
    """Whether the launch of a sweep's run lives, whatever the run's status is."""
    if run.host != socket.gethostname() or run.folder is None:
        return "unknown"
    folder = Path(run.folder)
    try:
        return "runs" if running(SweepPaths(folder.parents[1], folder.name)) else "gone"
    except OSError:  # another user's
        return "unknown"


def told(run: RunFacts) -> str | None:
    """For who reads a sweep that has not ended: whether it runs; None for one that has."""
    match fate(run):
        case "ended":
            return None
        case "runs":
            return f"{run.sweep} still runs"
        case "gone":
            return (
                f"{run.sweep} is interrupted (its launch is gone): launch --resume goes on with "
                f"it, or `ranksweep stop {run.sweep}` closes its record"
            )
        case _:
            where = f" on {run.host}" if run.host else ""
            return (
                f"{run.sweep} runs{where}, or its launch is gone: then launch --resume goes on "
                f"with it, or `ranksweep stop {run.sweep} --gone` closes its record"
            )
