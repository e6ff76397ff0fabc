"""A launch is steered from another process while it runs, and watched to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.paths import sqlite_uri
from tests.search.launches import Launch, environment, states_in_mlflow, study_in

SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "methods": {"lora": {}}}


def ranksweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "search.cli.main", *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def document(folder: Path, *arguments: str) -> Any:
    done = ranksweep(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.command
@pytest.mark.long
def test_a_launch_is_stopped_in_a_trial_given_others_and_watched_to_its_end(
    launched: Callable[..., Launch], tiny_sweep: dict[str, Any], short_folder: Path
) -> None:
    folder = short_folder
    sweep = {
        **tiny_sweep,
        "space": SPACE,
        "search": {"trials": 2, "scheduler": "none", "warm_start": False},
        "train": {"epochs": 100, "batch_size": 16},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "choice.yaml").write_text("{method: lora, rank: 2, learning_rate: 5.0e-3}")
    (folder / "outside.yaml").write_text("{method: lora, rank: 3}")
    launch = launched(folder)
    launch.wait_for("trial 0: epoch 2 of 100")

    assert document(folder, "trials", "tiny", "stop", "0")["state"] == "accepted"
    launch.wait_for("trial 0: lora stopped")
    launch.wait_for("trial 1: epoch 1 of 100")
    warm = ["trials", "tiny", "clone", "1", "--set", "learning_rate=1.0e-3", "--warm"]
    told = document(folder, *warm)
    assert told["state"] == "accepted"
    assert told["reason"] == "6 of 6 blocks start from its weights"
    assert document(folder, "trials", "tiny", "enqueue", "choice.yaml")["state"] == "accepted"

    refused = ranksweep(folder, "trials", "tiny", "stop", "0")
    assert refused.returncode == 2
    assert "error: N: trial 0 has ended (stopped)" in refused.stderr
    outside = ranksweep(folder, "trials", "tiny", "enqueue", "outside.yaml")
    assert outside.returncode == 2
    assert "lora.rank: 3 is not in the space" in outside.stderr

    now = document(folder, "watch", "tiny")
    assert (now["status"], now["launch"], now["stage"]) == ("running", "runs", "search")
    assert now["states"] == {"stopped": 1}
    watched = ranksweep(folder, "watch", "tiny")
    assert watched.returncode == 0, watched.stderr
    assert "best of each method on dev (accuracy)" in watched.stdout
    assert "best so far: accuracy" in watched.stderr

    assert launch.end() == 0, launch.said
    result = launch.result()
    assert result["states"] == {"stopped": 1, "complete": 3}
    assert list((folder / ".ranksweep" / "sweeps" / "tiny" / "warm").iterdir()) == []
    (clone,) = result["warm"]
    assert clone["warm_from"] == 1
    assert clone["number"] not in {row["number"] for row in result["best"]}
    rows = document(folder, "trials", "tiny", "list")
    asked = {row["number"]: row["asked"] for row in rows["trials"]}
    assert sorted(asked.values()) == ["enqueued", "the sweep", "the sweep", "warm clone of 1"]
    assert rows["requests"] == []
    assert not rows["runs"]
    assert states_in_mlflow(folder) == {0: "stopped", 1: "complete", 2: "complete", 3: "complete"}
    client = MlflowClient(sqlite_uri(folder / ".ranksweep" / "mlflow.db"))
    run = client.get_run(study_in(folder).trials[clone["number"]].user_attrs["mlflow_run_id"])
    assert run.data.tags["ranksweep.warm_from"] == "1"
    # What it started from had trained: its first epoch is no first epoch.
    first = client.get_metric_history(run.info.run_id, "train_loss")[0].value
    source = client.get_run(study_in(folder).trials[1].user_attrs["mlflow_run_id"])
    assert first < client.get_metric_history(source.info.run_id, "train_loss")[0].value
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"weights.safetensors"}

    waits = ranksweep(folder, "trials", "tiny", "clone", "1", "--set", "learning_rate=1.5e-3")
    assert waits.returncode == 0
    assert "nobody runs tiny now; what is asked waits for launch --resume" in waits.stdout
    again = launched(folder, "--resume")
    assert again.end() == 0, again.said
    assert again.result()["states"] == {"stopped": 1, "complete": 4}
    assert document(folder, "trials", "tiny", "list")["trials"][4]["asked"] == "clone of 1"
