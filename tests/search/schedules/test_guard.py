"""What stands between a scheduler and its sweep: who may not go on is stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.schedules.process import SweepProcess
from tests.search.schedules.schedules import wait_until

pytestmark = pytest.mark.command
# Ends at SIGTERM where there is no file `deaf`.
SWEEP = """
import os, pathlib, signal, sys, time
if pathlib.Path(sys.argv[1], "deaf").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[SweepProcess]:
    process = started(tmp_path, 60.0)
    yield process
    process.interrupt()
    assert process.wait(30) is not None


def started(folder: Path, lease_seconds: float) -> SweepProcess:
    command = [sys.executable, "-I", "-c", SWEEP, str(folder)]
    process = SweepProcess(command, folder / "sweep.log", lease_seconds)
    wait_until(lambda: (folder / "pid").exists() and bool((folder / "pid").read_text()))
    return process


def lives(folder: Path) -> bool:
    return Path("/proc", (folder / "pid").read_text()).exists()


def test_an_interrupt_goes_on_to_the_sweep_whose_exit_code_comes_back(tmp_path: Path) -> None:
    process = started(tmp_path, 60.0)
    assert process.wait(0.0) is None
    process.interrupt()
    ended = process.wait(30)
    assert ended is not None
    assert (ended.how, ended.code) == ("interrupted", 130)


def test_a_sweep_whose_claim_is_not_renewed_is_interrupted(tmp_path: Path) -> None:
    process = started(tmp_path, 2.0)
    ended = process.wait(30)
    assert ended is not None
    assert ended.how == "interrupted"
    assert "does not own it any more" in (tmp_path / "sweep.log").read_text()


def test_one_that_does_not_hear_is_killed_before_others_take_over(tmp_path: Path) -> None:
    (tmp_path / "deaf").touch()
    process = started(tmp_path, 2.0)
    ended = process.wait(30)
    assert ended is not None
    assert ended.code == 128 + 9
    assert not lives(tmp_path)


def test_a_sweep_ends_with_its_guard(sweep: SweepProcess, tmp_path: Path) -> None:
    subprocess.run(["kill", "-KILL", str(sweep.pid)], check=True)
    wait_until(lambda: not lives(tmp_path))


def test_the_last_error_of_a_launch_is_what_is_told(tmp_path: Path) -> None:
    said = "import sys; print('error: store: s3://me:secret@x is away', file=sys.stderr)"
    process = SweepProcess(
        [sys.executable, "-I", "-c", f"{said}; sys.exit(1)"], tmp_path / "a.log", 60.0
    )
    ended = process.wait(30)
    assert ended is not None
    assert (ended.how, ended.error) == ("failed", "store: s3://***@x is away")
