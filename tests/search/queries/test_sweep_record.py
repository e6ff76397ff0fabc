"""A sweep is read whole from MLflow, that of an older version too."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from search.queries.sweep_record import SweepRecord, read_sweep
from search.tracking.facts import Point
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError
from tests.mlflow_server import MlflowServer
from tests.recorded.folder import STATE, unpack
from tests.search.tracked import start_trial

TAGS = {"task": "movie", "metric": "accuracy", "mode": "max", "profile_key": "k" * 64}
CONFIG = {"search": {"trials": 4}, "store": "file:///s", "tracking": {"uri": "http://u:p@host/"}}


class Sweep:
    """A sweep as its launch writes it."""

    def __init__(self, uri: str, name: str = "demo") -> None:
        self.uri = uri
        self.tracker = Tracker(uri, "movie")
        self.run_id = self.tracker.start_sweep(name, CONFIG, TAGS)

    def trial(self, number: int, values: list[float], state: Any = "complete", **more: Any) -> str:
        choice = {"method": "lora", "rank": number + 1, "learning_rate": 1e-3}
        own = {"arm": "lora", **more.pop("tags", {})}
        run = start_trial(self.tracker, self.run_id, number, choice, tags=own, **more)
        points = [Point("trainable_params", 100.0, 0, 1)]
        for epoch, value in enumerate(values, start=1):
            points += [
                Point("accuracy", value, epoch, 1000 * epoch),
                Point("training_seconds", 2.0 + epoch, epoch, 1000 * epoch),
                Point("evaluation_seconds", 0.5, epoch, 1000 * epoch),
            ]
        self.tracker.log(run, metrics=points)
        if state != "running":
            self.tracker.end(run, state)
        return run

    def read(self, **more: Any) -> SweepRecord:
        return read_sweep(RecordedRuns(self.uri), "demo", **more)


def test_a_sweep_is_read_with_its_curves_and_what_it_spent(database: str) -> None:
    Sweep(database, "other").trial(9, [0.9])
    sweep = Sweep(database)
    first = sweep.trial(1, [0.5, 0.7, 0.6])
    running = sweep.trial(0, [0.4], "running")
    failed = sweep.trial(2, [], "failed")
    confirm = sweep.trial(1, [], kind="confirm", tags={"seed": 1})
    sweep.tracker.log(
        confirm,
        metrics=[Point("test_accuracy", 0.65, 3, 1), Point("dev_accuracy", 0.6, 3, 1),
                 Point("training_seconds", 4.0, 3, 1), Point("evaluation_seconds", 1.0, 3, 1)],
    )  # fmt: skip
    sweep.trial(2, [], "failed", kind="confirm", tags={"seed": 1})
    found = sweep.read()
    assert [run.run_id for run in found.trials] == [running, first, failed]
    assert [run.run_id for run in found.confirmations] == [confirm]
    assert [(p.epoch, p.value, p.at_ms) for p in found.curves[first]] == [
        (1.0, 0.5, 1000),
        (2.0, 0.7, 2000),
        (3.0, 0.6, 3000),
    ]
    assert failed not in found.curves
    assert (found.spent[first].training, found.spent[first].measuring) == (3 + 4 + 5, 1.5)
    # A confirmation says of its last epoch alone how long it trained; it had three.
    assert (found.spent[confirm].training, found.spent[confirm].measuring) == (12.0, 1.0)
    assert found.comparison is not None
    assert [row.mean for row in found.comparison.rows] == [0.65]
    assert [row.number for row in found.best] == [1]
    assert found.setting("search", "trials") == 4
    assert found.setting("search", "trials", "no") is found.setting("no", "such") is None
    assert "u:p" not in str(found)
    assert found.run.versions is not None


def test_of_many_trials_those_have_a_curve_that_stand_out(database: str) -> None:
    sweep = Sweep(database)
    runs = [sweep.trial(n, [0.1 * n], "pruned" if n < 7 else "complete") for n in range(10)]
    found = sweep.read(max_curves=5)
    assert len(found.curves) == 5
    assert {runs[9], runs[8]} <= found.curves.keys(), "the best of its arm, and the next"
    assert found.curves.keys() & set(runs[:4]), "and others, evenly"
    assert sweep.read(max_curves=10).curves.keys() == set(runs)


def test_an_unknown_sweep_is_refused_with_the_nearest_name(database: str) -> None:
    Sweep(database)
    with pytest.raises(ConfigError, match=r"SWEEP: MLflow has no sweep .* did you mean 'demo'"):
        read_sweep(RecordedRuns(database), "dmo")
    with pytest.raises(ConfigError, match="no sweep of the name or run id"):
        read_sweep(RecordedRuns(database), "x' OR 1=1 --")


def test_a_sweep_of_an_older_version_is_read(tmp_path: Path) -> None:
    unpack(tmp_path)
    file = tmp_path / STATE / "mlflow.db"
    uri = f"sqlite:///{file}"
    MlflowClient(tracking_uri=uri)  # migrated, where MLflow is a newer one
    found = read_sweep(RecordedRuns(uri), "finished")
    with closing(sqlite3.connect(file)) as database:
        query = """SELECT m.run_uuid, m.step, m.value FROM metrics m JOIN tags t USING (run_uuid)
        WHERE m.key = ? AND t.key = 'mlflow.parentRunId' AND t.value = ?"""
        points = database.execute(query, ("accuracy", found.run.run_id)).fetchall()
    trials = {run.run_id for run in found.trials}
    read = {(run_id, p.epoch, p.value) for run_id, each in found.curves.items() for p in each}
    assert read == {point for point in points if point[0] in trials}
    assert len(found.trials) == 9
    assert found.comparison is not None
    assert {run.seed for run in found.confirmations} == {1, 2}
    assert found.config["name"] == "finished"
    cut = read_sweep(RecordedRuns(uri), "cut")
    assert cut.comparison is None
    assert cut.curves


@pytest.mark.server
def test_a_server_gives_the_histories_that_its_database_has(server: MlflowServer) -> None:
    sweep = Sweep(server.uri)
    runs = [sweep.trial(n, [0.1 * n, 0.2 * n]) for n in range(1, 4)]
    found = RecordedRuns(server.uri).histories([*runs, "f" * 32], "accuracy")
    assert found.keys() == set(runs)
    for n, run in enumerate(runs, start=1):
        assert [p.step for p in found[run]] == [1, 2]
        assert [p.value for p in found[run]] == pytest.approx([0.1 * n, 0.2 * n])
