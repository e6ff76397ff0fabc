"""optuna-dashboard shows of a sweep's study what the study and MLflow say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from mlflow import MlflowClient

from search.study.study import open_study
from tests.recorded.folder import STATE, unpack
from tests.search.study.test_searcher import asked, finish
from tests.search.toy_search import searcher_over, toy_study

dashboard = pytest.importorskip("optuna_dashboard")


def shown(storage: str) -> dict[str, Any]:
    """What the dashboard's own interface says of the one study of a storage."""
    app = dashboard.wsgi(optuna.storages.RDBStorage(storage))

    def answer(path: str) -> Any:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {"PATH_INFO": path, "QUERY_STRING": "after=0"}
        return json.loads(b"".join(app(environ, lambda status, headers, error=None: None)))

    (study,) = answer("/api/studies")["study_summaries"]
    return answer(f"/api/studies/{study['study_id']}")


def named(entries: list[dict[str, Any]], value: str = "value") -> dict[str, Any]:
    return {str(entry.get("name", entry.get("key"))): entry[value] for entry in entries}


def test_a_sweep_of_an_older_version_has_its_metrics_name_and_mlflows_numbers(
    tmp_path: Path,
) -> None:
    unpack(tmp_path)
    storage = f"sqlite:///{tmp_path / STATE / 'sweeps' / 'finished' / 'study.db'}"
    asked_for = {"objectives": ("accuracy",), "mode": "max", "sampler": "tpe", "seed": 0}
    study = open_study(storage, "finished", **asked_for)  # type: ignore[arg-type]
    told = shown(storage)
    assert (told["objective_names"], told["directions"]) == (["accuracy"], ["maximize"])

    client = MlflowClient(f"sqlite:///{tmp_path / STATE / 'mlflow.db'}")
    compared = 0
    for trial, row in zip(study.trials, told["trials"], strict=True):
        assert row["state"].upper() == trial.state.name
        params = named(row["params"], "param_external_value")
        assert params == {key: str(value) for key, value in trial.params.items()}
        attributes = named(row["user_attrs"])
        if trial.state.name == "COMPLETE" and "mlflow_run_id" in attributes:
            metrics = client.get_metric_history(attributes["mlflow_run_id"], "accuracy")
            curve = {point["step"]: point["value"] for point in row["intermediate_values"]}
            assert curve == {point.step: point.value for point in metrics}
            assert row["values"] == [metrics[-1].value]
            run = client.get_run(attributes["mlflow_run_id"])
            assert run.data.tags["ranksweep.method"] == attributes["method"]
            assert float(attributes["trainable_params"]) == run.data.metrics["trainable_params"]
            compared += 1
    assert compared > 3


def test_two_objectives_have_their_names_and_values(tmp_path: Path) -> None:
    study = toy_study(tmp_path, ("accuracy", "trainable_params"))
    searcher = searcher_over(study, objectives=("accuracy", "trainable_params"))
    for name in ("t0", "t1"):
        asked(searcher, name)
        finish(searcher, name)
    told = shown(f"sqlite:///{tmp_path / 'study.db'}")
    assert told["objective_names"] == ["accuracy", "trainable_params"]
    assert told["directions"] == ["maximize", "minimize"]
    complete = [trial.values for trial in study.trials if trial.state.name == "COMPLETE"]
    assert complete
    assert [row["values"] for row in told["trials"] if row["state"] == "Complete"] == complete
    arms = [named(row["user_attrs"])["arm"] for row in told["trials"]]
    assert arms == [trial.user_attrs["arm"] for trial in study.trials]
