"""Launches as a user starts them, in processes of their own, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
from mlflow import MlflowClient

from search.paths import sqlite_uri
from search.study.study import INTERRUPTED, REJECTED


def environment() -> dict[str, str]:
    """That of the test, for a process of this checkout."""
    here = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": here, "PYTHONUNBUFFERED": "1"}


class Launch:
    """One `ranksweep launch sweep.yaml` in a folder, and what it has written to stderr so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            # -P: as an installed command, it does not import what lies in the folder
            [
                *(sys.executable, "-P", "-m", "search.cli.main"),
                *("launch", "sweep.yaml", "--json", *arguments),
            ],
            cwd=folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, after: int = 0, seconds: float = 180) -> int:
        """Index behind the first line since `after` that the pattern is found in."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            for index, line in enumerate(self.lines[after:], after):
                if re.search(pattern, line):
                    return index + 1
            assert self.process.poll() is None, f"it ended before {pattern!r}:\n{self.said}"
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} within {seconds} s:\n{self.said}")

    def end(self, seconds: float = 180) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def result(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.read()))

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def study_in(folder: Path) -> optuna.Study:
    file = folder / ".ranksweep" / "sweeps" / "tiny" / "study.db"
    return optuna.load_study(study_name="tiny", storage=sqlite_uri(file))


def states_in_study(folder: Path) -> dict[int, str]:
    """Number -> how the study says that the trial ended; those left out were never trained."""
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
    return {
        trial.number: "cancelled" if INTERRUPTED in trial.user_attrs else names[trial.state.name]
        for trial in study_in(folder).get_trials()
        if trial.state.name != "WAITING" and REJECTED not in trial.user_attrs
    }


def states_in_mlflow(folder: Path) -> dict[int, str]:
    """Number -> how MLflow says that the trial ended."""
    client = MlflowClient(sqlite_uri(folder / ".ranksweep" / "mlflow.db"))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    found: dict[int, str] = {}
    for run in runs:
        tags = run.data.tags
        if tags["ranksweep.kind"] == "trial":
            number, status = int(tags["ranksweep.number"]), tags["ranksweep.status"]
            assert number not in found, "two runs of one trial"
            # a run that its own launch could not close is closed by the next
            found[number] = "cancelled" if status == "interrupted" else status
    return found


def complete(states: dict[int, str]) -> set[int]:
    return {number for number, state in states.items() if state == "complete"}


def check_nothing_runs(folder: Path) -> set[int]:
    """No trial is left open anywhere; returns those that are complete, in both books alike."""
    study, mlflow = states_in_study(folder), states_in_mlflow(folder)
    assert "running" not in study.values()
    assert {number: study[number] for number in mlflow} == mlflow
    assert complete(study) == complete(mlflow)
    return complete(study)
