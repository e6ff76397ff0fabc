"""A launch is steered from another process while it runs, and watched to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.paths import SweepPaths, sqlite_uri
from search.study.asking import (
    clone_trial,
    enqueue_choice,
    stop_trial,
    study_of_sweep,
    wait_for_answer,
)
from search.study.requests import Answer
from search.study.trial_list import trial_rows
from tests.search.launches import Launch, environment, states_in_mlflow, study_in


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "search.cli.main", *arguments]


def in_(folder: Path) -> dict[str, Any]:
    return {"cwd": folder, "env": environment(), "text": True, "stdout": subprocess.PIPE}


def ranksweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), **in_(folder), stderr=subprocess.PIPE, timeout=180, check=False
    )


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
        "space": {"learning_rate": [1e-3, 1.5e-3, 5e-3], "methods": {"lora": {}}},
        "search": {"trials": 1, "scheduler": "none", "warm_start": False},
        "train": {"epochs": 160, "batch_size": 16},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    (folder / "outside.yaml").write_text("{method: lora, rank: 3, learning_rate: 1.0e-3}")
    launch = launched(folder)
    launch.wait_for("trial 0: epoch 2 of 160")
    watching = subprocess.Popen(command("watch", "tiny"), **in_(folder), stderr=subprocess.PIPE)
    paths = SweepPaths(folder / ".ranksweep", "tiny")
    study = study_of_sweep(paths, None)
    rate = trial_rows(study)[0].choice["learning_rate"]
    other = next(each for each in (1e-3, 5e-3) if each != rate)
    clone = clone_trial(study, paths, 0, [f"learning_rate={other}"], warm=True)
    enqueue = enqueue_choice(study, paths, {"method": "lora", "rank": 2, "learning_rate": 1.5e-3})
    said = [wait_for_answer(study, each, 60) for each in (clone, enqueue)]
    assert said == [Answer(True, "6 of 6 blocks start from its weights"), Answer(True)], launch.said
    # A clone's place goes to the next request while its weights are on their way.
    launch.wait_for("trial 1: lora, enqueued, as .* has asked")
    fetched = paths.warm / f"{clone.id}.safetensors"
    give_up = time.monotonic() + 60
    while not fetched.exists():
        assert time.monotonic() < give_up, launch.said
        time.sleep(0.05)
    assert wait_for_answer(study, stop_trial(study, 0), 60) == Answer(True), launch.said
    launch.wait_for("trial 0: lora stopped")

    assert launch.end() == 0, launch.said
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert "search: " in err
    assert "best of each method on dev (accuracy)" in out
    assert "started from the weights of trial 0, and is ranked with none" in out
    result = launch.result()
    assert result["states"] == {"stopped": 1, "complete": 2}
    assert [(each["number"], each["warm_from"]) for each in result["warm"]] == [(2, 0)]
    assert [row["number"] for row in result["best"]] == [1]
    assert list((folder / ".ranksweep" / "sweeps" / "tiny" / "warm").iterdir()) == []
    assert states_in_mlflow(folder) == {0: "stopped", 1: "complete", 2: "complete"}

    client = MlflowClient(sqlite_uri(folder / ".ranksweep" / "mlflow.db"))
    runs = [trial.user_attrs["mlflow_run_id"] for trial in study_in(folder).trials]
    tags = client.get_run(runs[2]).data.tags
    assert (tags["ranksweep.warm_from"], tags["ranksweep.asked_by"]) == ("0", "cloned")
    first = [client.get_metric_history(run, "train_loss")[0].value for run in (runs[0], runs[2])]
    assert first[1] < first[0], "its first epoch is none of an untrained model"
    assert "weights.safetensors" in {file.path for file in client.list_artifacts(runs[2])}

    for arguments, reason in (
        (("stop", "0"), "N: trial 0 has ended (stopped)"),
        (("enqueue", "outside.yaml"), "lora.rank: 3 is not in the space"),
        (("clone", "0", "--warm"), "--warm: trial 0 is stopped, and its weights are gone"),
    ):
        refused = ranksweep(folder, "trials", "tiny", *arguments)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith(f"error: {reason}")
    waits = ranksweep(folder, "trials", "tiny", "clone", "1", "--set", "rank=1", "--warm")
    assert waits.returncode == 0
    assert "nobody runs tiny now; what is asked waits for launch --resume" in waits.stdout
    cold = document(folder, "trials", "tiny", "clone", "1", "--set", f"learning_rate={other}")
    assert (cold["state"], cold["runs"]) == ("waits", False)

    again = launched(folder, "--resume")
    assert again.end() == 0, again.said
    assert again.result()["states"] == {"stopped": 1, "complete": 3}
    listed = document(folder, "trials", "tiny", "list")
    origins = ["the sweep", "enqueued", "warm clone of 0", "clone of 1"]
    assert [row["asked"] for row in listed["trials"]] == origins
    (left,) = listed["requests"]  # another rank has no block in common
    assert left["state"] == "refused"
    assert left["reason"].startswith("--warm: none of the 6 blocks of the plan has the rank")
