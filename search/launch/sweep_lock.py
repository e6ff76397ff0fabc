"""Who runs a sweep: one launch at a time holds its lock, and another command can ask it to stop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from search.paths import SweepPaths
from spaces.errors import ConfigError, JobError

POLL_S = 0.2


@dataclass(frozen=True)
class Runner:
    """The process that runs a sweep."""

    pid: int
    host: str


@contextmanager
def alone(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's lock: two launches of one name would undo each other's trials.

    Raises ConfigError where another process holds it.
    """
    paths.make_sweep()
    try:
        held = _lock(paths).acquire()
    except Timeout:
        raise _run_by(_runner(paths), paths) from None
    with held:
        paths.lock.write_text(f"{os.getpid()} {socket.gethostname()}")
        yield


def running(paths: SweepPaths) -> Runner | None:
    """The process that runs the sweep now; None where nobody does."""
    if not paths.lock.exists():
        return None
    try:
        with _lock(paths):
            return None
    except Timeout:
        return _runner(paths)


def refuse_running(paths: SweepPaths) -> None:
    """Raise ConfigError where a process runs the sweep now."""
    runner = running(paths)
    if runner is not None:
        raise _run_by(runner, paths)


def _run_by(runner: Runner, paths: SweepPaths) -> ConfigError:
    return ConfigError(
        f"name: the sweep {paths.name!r} is being run by process {runner.pid} on {runner.host}; "
        f"wait for it or end it with `ranksweep stop {paths.name}`, or launch under another name "
        "(--set name=...)"
    )


def stop(paths: SweepPaths, *, at_once: bool = False, timeout_s: float = 120.0) -> Runner:
    """End the launch of a sweep as Ctrl-C would, `at_once` as pressing it twice; wait until it has.

    Raises:
        ConfigError: there is no such sweep, or it is run on another machine.
        JobError: nobody runs it, this user may not end it, or it has not ended in time.
    """
    if not paths.sweep.is_dir():
        raise ConfigError(
            f"SWEEP: there is no sweep {paths.name!r} in {paths.root}; run this where it was "
            "launched, with the name of its sweep"
        )
    runner = running(paths)
    if runner is None:
        raise JobError(f"the sweep {paths.name!r} is not running; there is nothing to stop")
    if runner.pid == 0:
        raise JobError(f"the sweep {paths.name!r} is just being launched; try again")
    if runner.host != socket.gethostname():
        raise ConfigError(
            f"SWEEP: {paths.name!r} is run by process {runner.pid} on {runner.host}; stop it there"
        )
    for _ in range(2 if at_once else 1):
        _interrupt(runner, paths)
        time.sleep(POLL_S)
    give_up = time.monotonic() + timeout_s
    while running(paths) == runner or _lives(runner):
        if time.monotonic() > give_up:
            raise JobError(
                f"the sweep {paths.name!r} (process {runner.pid}) has not ended within "
                f"{timeout_s:g} s; it goes on ending, or end it with --now"
            )
        time.sleep(POLL_S)
    return runner


def _lives(runner: Runner) -> bool:
    """Whether its process, on this machine, has not ended; a zombie has."""
    try:
        return bool(psutil.Process(runner.pid).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError):
        return False


def _interrupt(runner: Runner, paths: SweepPaths) -> None:
    try:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(runner.pid, signal.SIGTERM)
    except PermissionError:
        raise JobError(
            f"the sweep {paths.name!r} is run by another user's process {runner.pid}; ask its "
            "owner to stop it"
        ) from None


def _lock(paths: SweepPaths) -> FileLock:
    """The sweep's lock, which is had at once or not at all and ends with its process."""
    return FileLock(paths.lock, timeout=0, mode=0o600, fallback_to_soft=False)


def _runner(paths: SweepPaths) -> Runner:
    pid, _, host = paths.lock.read_text().strip().partition(" ")
    # Between the lock and its text there is a moment; 0 is no process.
    return Runner(int(pid) if pid.isdigit() else 0, host or socket.gethostname())
