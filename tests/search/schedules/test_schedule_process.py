"""Schedules as a user runs them: real launches of a tiny model, signals, another folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from search.paths import sqlite_uri
from tests.search.launches import environment
from tests.search.schedules.schedules import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.long]


def schedule(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ranksweep", "schedule", *arguments, "--json"],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[str], code: int) -> Any:
    said, errors = process.communicate(timeout=400)
    assert process.returncode == code, errors
    return json.loads(said)


def write(folder: Path, tiny_sweep: dict[str, Any], places: Path, **sweep: Any) -> None:
    """A schedule in a folder whose store, study and tracking are in another."""
    folder.mkdir()
    written = {key: value for key, value in tiny_sweep.items() if key != "name"} | sweep
    (folder / "sweep.yaml").write_text(yaml.safe_dump(written))
    keys = {
        "name": "new-tiny",
        "sweep": "sweep.yaml",
        "store": f"file://{places / 'store'}",
        "tracking": sqlite_uri(places / "mlflow.db"),
        "lease_seconds": 20,
    }
    (folder / "schedule.yaml").write_text(yaml.safe_dump(keys))


@pytest.mark.timeout(1200)
def test_a_sweep_that_is_interrupted_goes_on_and_is_done_once(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    search = {"trials": 6, "scheduler": "none"}
    train = {"epochs": 12, "batch_size": 16}
    write(folder, tiny_sweep, tmp_path, search=search, train=train)
    (seen,) = finished(schedule("check", "schedule.yaml", folder=folder), 0)["models"]
    assert (seen["what"], seen["is_due"]) == ("is to be swept", True)
    assert not (tmp_path / "store").exists()

    first = schedule("once", "schedule.yaml", folder=folder)
    logs = folder / ".ranksweep" / "schedules" / "new-tiny"
    wait_until(lambda: any(" complete" in each.read_text() for each in logs.glob("*.log")), 240)
    first.send_signal(signal.SIGTERM)
    (outcome,) = finished(first, 130)
    assert outcome["state"] == "interrupted"
    name = outcome["sweep"]

    (outcome,) = finished(schedule("once", "schedule.yaml", folder=folder), 0)
    assert (outcome["sweep"], outcome["state"]) == (name, "done")
    assert finished(schedule("once", "schedule.yaml", folder=folder), 0) == []
    (row,) = finished(
        schedule("status", "--store", f"file://{tmp_path / 'store'}", folder=folder), 0
    )
    assert (row["sweep"], row["state"], row["tries_left"]) == (name, "done", 3)
    assert 0.0 <= row["best"]["value"] <= 1.0

    client = MlflowClient(sqlite_uri(tmp_path / "mlflow.db"))
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    tags = [run.data.tags for run in runs]
    (sweep,) = [each for each in tags if each["ranksweep.kind"] == "sweep"]
    assert sweep["ranksweep.scheduled_by"] == "new-tiny"
    complete = [
        each["ranksweep.number"]
        for each in tags
        if each["ranksweep.kind"] == "trial" and each["ranksweep.status"] == "complete"
    ]
    assert len(complete) == len(set(complete)) == 6


@pytest.mark.timeout(1200)
def test_another_folder_takes_over_from_a_scheduler_that_is_killed(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    shared = {
        "search": {"trials": 4, "scheduler": "none", "study": sqlite_uri(tmp_path / "study.db")},
        "train": {"epochs": 12, "batch_size": 16},
    }
    write(tmp_path / "one", tiny_sweep, tmp_path, **shared)
    write(tmp_path / "two", tiny_sweep, tmp_path, **shared)
    first = schedule("once", "schedule.yaml", folder=tmp_path / "one")
    logs = tmp_path / "one" / ".ranksweep" / "schedules" / "new-tiny"
    wait_until(lambda: any(" complete" in each.read_text() for each in logs.glob("*.log")), 240)
    first.kill()
    first.wait()
    (outcome,) = finished(schedule("once", "schedule.yaml", folder=tmp_path / "two"), 0)
    assert outcome["state"] == "done"
    (log,) = (tmp_path / "two" / ".ranksweep" / "schedules" / "new-tiny").glob("*.json")
    launched = json.loads(log.read_text())
    assert launched["profile_cached"]
    assert launched["states"]["complete"] == 4
