"""Who runs a sweep: one launch at a time holds its lock, and another command can ask it to stop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil  # type: ignore[import-untyped]
from filelock import Timeout

from search.paths import SweepPaths
from search.tracking.liveness import Runner, lock_of, runner_of, running
from spaces.errors import ConfigError, JobError

POLL_S = 0.2


@contextmanager
def alone(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's lock: two launches of one name would undo each other's trials.

    Raises ConfigError where another process holds it.
    """
    paths.make_sweep()
    try:
        held = lock_of(paths).acquire()
    except Timeout:
        raise _run_by(runner_of(paths), paths) from None
    with held:
        paths.lock.write_text(f"{os.getpid()} {socket.gethostname()}")
        yield


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
        ConfigError: it is run on another machine.
        JobError: nobody runs it, this user may not end it, or it has not ended in time.
    """
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
