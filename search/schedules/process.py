"""A scheduled sweep as a process: its command, where its output goes, and what its end means."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from search.interrupts import EXIT_INTERRUPTED
from search.paths import SweepPaths, private_files
from search.redaction import redacted_text
from search.schedules import guard
from search.schedules.identity import is_from_hub
from search.schedules.schedule import Schedule
from search.schedules.sight import Due
from search.tracking.liveness import running
from spaces.errors import shown
from trainables.bases.location import is_of_hub

INTERRUPT_AT, KILL_AT = 0.5, 0.8
"""Shares of a claim's lease time after which a sweep whose claim is not renewed is interrupted, and
killed."""
EXIT_USAGE = 2
_SIGNALLED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
_TAIL = 64 * 1024
_ERROR = re.compile(r"^(?:\x1b\[\d+m)?error: (.*?)(?:\x1b\[\d+m)?$", re.MULTILINE)

How = Literal["done", "failed", "refused", "interrupted"]
Command = Callable[[Schedule, Due], Sequence[str]]
"""What is run for a due sweep; tests put another in its place."""


def launch_command(schedule: Schedule, due: Due) -> list[str]:
    """The launch of a due sweep, which goes on with what has been begun.

    On a cluster `--resume` follows the job that a scheduler before this one has left there.
    """
    settings = schedule.settings
    overrides = [*schedule.overrides, f"base={json.dumps(due.sighting.base)}", f"name={due.sweep}"]
    command = [sys.executable, "-P", "-m", "ranksweep", "launch", str(schedule.sweep_file)]
    for override in overrides:
        command += ["--set", override]
    command += ["--scheduled-by", schedule.name, "--json"]
    for option, value in (
        ("--base-name", due.sighting.family or None),
        ("--store", settings.store),
        ("--tracking", settings.tracking),
        ("--submit", settings.submit),
        ("--remote-folder", settings.remote_folder),
    ):
        if value is not None:
            command += [option, value]
    if settings.shared:
        command.append("--shared")
    begun = settings.submit is not None or was_begun(due.sweep)
    return [*command, "--resume"] if begun else command


def was_begun(sweep: str) -> bool:
    """Whether this folder holds a sweep of that name, which `launch --resume` goes on with."""
    return SweepPaths(name=sweep).sweep_file.is_file()


def rests_on_others(schedule: Schedule, due: Due) -> bool:
    """Whether a launch needs what may be away: the hub, a cluster, a shared study's database.

    Then one that is refused before it has begun may be taken the next time.
    """
    config = schedule.config
    return (
        schedule.settings.submit is not None
        or config.cluster.address != "local"
        or config.search.study is not None
        or is_of_hub(due.sighting.base)
        or is_from_hub(config.task.model_dump(mode="json"))
    )


@dataclass(frozen=True)
class Ended:
    """How a sweep's process has ended.

    A `refused` one has not begun, and has changed nothing. `result` is what the launch has printed.
    """

    how: How
    code: int
    error: str | None = None
    result: Mapping[str, Any] | None = None

    @property
    def leaves_a_launch(self) -> bool:
        """Whether the launch may run for moments yet: its guard was killed, and not by it."""
        return self.code < 0

    @property
    def best(self) -> dict[str, Any] | None:
        """Method, metric and value of the best trial, and the sweep's run."""
        if self.result is None or not self.result.get("best"):
            return None
        first = self.result["best"][0]
        kept = {key: first.get(key) for key in ("method", "value", "trainable_params", "run_id")}
        return {**kept, "sweep_run_id": self.result.get("sweep_run_id")}


class SweepProcess:
    """A sweep that runs, behind its guard, in a process group of its own.

    Its output goes to `log`, its result beside it. Raises OSError where it cannot be started, as on
    a full disk.
    """

    def __init__(self, command: Sequence[str], log: Path, lease_seconds: float) -> None:
        self.log, self._out = log, log.with_suffix(".json")
        limits = (str(lease_seconds * share) for share in (INTERRUPT_AT, KILL_AT))
        with private_files():
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as errors, self._out.open("wb") as out:
                self._from = errors.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-I", guard.__file__, *limits, *command],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=errors,
                    start_new_session=True,
                )

    @property
    def pid(self) -> int:
        """The process id of its guard."""
        return self._process.pid

    def go_on(self) -> None:
        """Tell the guard that the sweep's claim was renewed."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has just ended
            self._process.stdin.write(b".")
            self._process.stdin.flush()

    def interrupt(self) -> None:
        """As Ctrl-C; a second time as a second Ctrl-C."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> Ended | None:
        """How it has ended; None where it has not within so many seconds."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        return self._ended(code)

    def _ended(self, code: int) -> Ended:
        result = _document(self._out)
        if code == 0:
            return Ended("done", code, None, result)
        if code == EXIT_INTERRUPTED or code in _SIGNALLED or code < 0:
            return Ended("interrupted", code, None, result)
        error = self._error() or f"its launch has ended with exit code {code}; see {self.log}"
        return Ended("refused" if code == EXIT_USAGE else "failed", code, error, result)

    def _error(self) -> str | None:
        """The last error that it has told, in one line."""
        with self.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self._from, size - _TAIL))
            told = _ERROR.findall(file.read().decode(errors="replace"))
        return shown(redacted_text(told[-1].strip()), 500) if told else None


def wait_for_the_one_before(sweep: str, go_on: Callable[[], bool]) -> bool:
    """Wait until no launch of that name runs in this folder; `go_on` is asked meanwhile.

    One is left for moments where its scheduler or its guard was killed. False where `go_on` said to
    leave.
    """
    paths = SweepPaths(name=sweep)
    while running(paths) is not None:
        if not go_on():
            return False
    return True


def _document(file: Path) -> Mapping[str, Any] | None:
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
