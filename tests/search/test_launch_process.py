"""Launches as a user starts them: a process of its own, its own Ray, signals and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow import MlflowClient

pytestmark = pytest.mark.ray


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", "launch", "sweep.yaml", "--json", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def test_ctrl_c_keeps_what_is_done_and_resume_does_the_rest(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    sweep = {**tiny_sweep, "train": {"epochs": 30, "batch_size": 16}}
    sweep["search"] = {"trials": 4, "scheduler": "none"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    launch = start(tmp_path)
    assert launch.stderr is not None
    seen: list[str] = []
    for line in launch.stderr:
        seen.append(line)
        # one trial is complete, and another runs
        if re.search(r"trial \d+: epoch", line) and any(" complete, " in each for each in seen):
            launch.send_signal(signal.SIGINT)
            break
    rest = launch.stderr.read()
    assert launch.wait(120) == 130, "".join(seen) + rest
    assert "--resume" in rest

    study_file = tmp_path / ".ranksweep" / "sweeps" / "tiny" / "study.db"
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{study_file}")
    states = [trial.state.name for trial in study.get_trials()]
    assert states.count("COMPLETE") == 1, states
    assert "RUNNING" not in states

    launch = start(tmp_path, "--resume")
    out, errors = launch.communicate(timeout=300)
    assert launch.returncode == 0, errors
    result = json.loads(out)
    assert result["profile_cached"]
    assert result["states"]["complete"] == 4
    complete = [t for t in study.get_trials() if t.state.name == "COMPLETE"]
    assert len({t.user_attrs["choice"] for t in complete}) == 4
    client = MlflowClient(f"sqlite:///{tmp_path / '.ranksweep' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert not [run for run in runs if run.info.status == "RUNNING"]
    done = [
        run
        for run in runs
        if run.data.tags["ranksweep.kind"] == "trial"
        and run.data.tags["ranksweep.status"] == "complete"
    ]
    assert len(done) == 4
