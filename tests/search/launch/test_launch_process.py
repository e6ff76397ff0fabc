"""Launches as a user starts them: a process of its own, its own Ray, signals and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from search.paths import SweepPaths
from tests.search.launches import (
    Launch,
    check_nothing_runs,
    complete,
    environment,
    states_in_study,
    study_in,
)

pytestmark = pytest.mark.ray


@pytest.mark.long
@pytest.mark.timeout(1200)  # five launches
def test_accident_after_accident_loses_no_finished_trial(
    tiny_sweep: dict[str, Any], tmp_path: Path, launched: Callable[..., Launch]
) -> None:
    sweep = {**tiny_sweep, "train": {"epochs": 30, "batch_size": 16}}
    sweep["search"] = {"trials": 6, "scheduler": "none"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))

    # A worker is killed in mid-trial: its job is done again. Then Ctrl-C.
    launch = launched(tmp_path)
    at = launch.wait_for(r"trial \d+: epoch [2-9] of")
    (worker,) = [p for p in launch.descendants() if "RayTrainWorker" in p.name() + p.cmdline()[0]]
    worker.send_signal(signal.SIGKILL)
    at = launch.wait_for(r"group 0 lost a worker .*; trial \d starts again", at)
    at = launch.wait_for(r"group 0 is up again", at)
    at = launch.wait_for(r"trial \d+: .* complete, ", at)
    launch.wait_for(r"trial \d+: epoch", at)
    launch.process.send_signal(signal.SIGINT)
    assert launch.end() == 130, launch.said
    assert "--resume" in launch.said
    first = check_nothing_runs(tmp_path)
    assert first
    # What is done is shown, and is in the log.
    assert launch.result()["states"]["complete"] == len(first)
    log = SweepPaths(tmp_path / ".ranksweep", "tiny").log.read_text()
    assert f"{len(first)} complete" in log
    assert "best of each method on dev" in log

    # Stopped from another terminal.
    launch = launched(tmp_path, "--resume")
    at = launch.wait_for(r"trial \d+: .* complete, ")
    launch.wait_for(r"trial \d+: epoch", at)
    command = [sys.executable, "-m", "search.cli.main", "stop", "tiny", "--json"]
    stop = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert stop.returncode == 0, stop.stderr + launch.said
    assert json.loads(stop.stdout)["pid"] == launch.process.pid
    assert launch.end() == 130, launch.said
    second = check_nothing_runs(tmp_path)
    assert second > first
    stop = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert stop.returncode == 1
    assert "is not running" in stop.stderr

    # Ctrl-C twice.
    launch = launched(tmp_path, "--resume")
    at = launch.wait_for(r"trial \d+: .* complete, ")
    at = launch.wait_for(r"trial \d+: epoch", at)
    launch.process.send_signal(signal.SIGINT)
    launch.wait_for("interrupted: what runs is being cancelled", at)
    launch.process.send_signal(signal.SIGINT)
    assert launch.end() == 130, launch.said
    third = check_nothing_runs(tmp_path)
    assert third > second

    # The driver is killed: its Ray goes with it, and what it left open is settled by the next.
    launch = launched(tmp_path, "--resume")
    at = launch.wait_for(r"trial \d+: .* complete, ")
    launch.wait_for(r"trial \d+: epoch", at)
    children = launch.descendants()
    launch.process.kill()
    assert launch.end() == -signal.SIGKILL
    _, alive = psutil.wait_procs(children, timeout=90)
    assert not alive, [process.name() for process in alive]
    fourth = complete(states_in_study(tmp_path))
    assert fourth > third

    launch = launched(tmp_path, "--resume")
    assert launch.end(300) == 0, launch.said
    result = launch.result()
    assert result["profile_cached"]
    assert result["states"]["complete"] == 6
    assert check_nothing_runs(tmp_path) > fourth
    done = [t for t in study_in(tmp_path).get_trials() if t.state.name == "COMPLETE"]
    assert len({t.user_attrs["choice"] for t in done}) == 6, "a finished trial was trained again"
