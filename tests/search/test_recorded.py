"""Folders that an earlier ranksweep has written go on working.

The folder was recorded by tests/recorded/record.py; what is asked of it are commands and the public
formats of MLflow, Optuna, transformers and PEFT.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import peft
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.recorded.folder import STATE, ranksweep, unpack

EVERY = ("best", "--task", "sentiment", "--top", "99")
NEW = ("task_fingerprint", "data", "suite", "holds", "holds_of", "collapsed")
"""What `best` has told of a trial since."""


pytestmark = pytest.mark.command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded folder, for tests that only look."""
    place = tmp_path_factory.mktemp("recorded")
    unpack(place)
    return place


def answer(folder: Path, *arguments: str | Path) -> Any:
    done = ranksweep(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def recorded(folder: Path, name: str) -> Any:
    """What the command said when the folder was recorded."""
    return json.loads((folder / f"{name}.json").read_text())


def mlflow_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / STATE / 'mlflow.db'}")


def runs_of(folder: Path) -> list[Run]:
    client = mlflow_of(folder)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def trials_of(folder: Path, sweep: str) -> dict[int, FrozenTrial]:
    storage = f"sqlite:///{folder / STATE / 'sweeps' / sweep / 'study.db'}"
    trials = optuna.load_study(study_name=sweep, storage=storage).get_trials()
    return {trial.number: trial for trial in trials}


def check_it_does_what_was_measured(model: Any, folder: Path, run_id: str) -> None:
    """On the dev rows a model that is loaded has the accuracy and the loss that its run has."""
    rows = pq.read_table(folder / "dev.parquet").to_pydict()
    labels = sorted(set(rows["label"]))
    wanted = torch.tensor([labels.index(label) for label in rows["label"]])
    tokenizer = AutoTokenizer.from_pretrained(folder / "recorded_bert" / "model")
    batch = tokenizer(
        rows["sentence"], padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    measured = mlflow_of(folder).get_run(run_id).data.metrics
    assert (logits.argmax(1) == wanted).float().mean().item() == pytest.approx(measured["accuracy"])
    assert cross_entropy(logits, wanted).item() == pytest.approx(measured["dev_loss"], rel=1e-4)


def test_the_best_trials_are_those_that_were_told(folder: Path) -> None:
    told = answer(folder, *EVERY)
    of_one_data = {(row.pop("task_fingerprint"), row.pop("data")) for row in told}
    assert not any(row.pop("suite") or row.pop("collapsed") for row in told)
    assert all(0 < row.pop("holds") < 1 <= row.pop("holds_of") for row in told)
    assert told == recorded(folder, "best")
    assert len(of_one_data) == 1


def test_a_comparison_says_what_it_said(folder: Path) -> None:
    said, before = answer(folder, "compare", "finished"), recorded(folder, "compare")
    assert said["verdict"] == before["verdict"]
    for row, told in zip(said["choices"], before["choices"], strict=True):
        known = {key: row[key] for key in told}
        assert known.pop("difference") == pytest.approx(told.pop("difference"))
        assert known == told


def test_the_profile_is_in_the_store_whole_and_used_by_as_many(folder: Path) -> None:
    assert answer(folder, "profiles", "list") == recorded(folder, "profiles")
    (profile,) = recorded(folder, "profiles")
    (checked,) = answer(folder, "profiles", "verify")
    assert (checked["key"], checked["ok"]) == (profile["key"], True)


def test_a_plan_is_exported_as_it_was_trained(folder: Path, tmp_path: Path) -> None:
    row = next(each for each in recorded(folder, "best") if each["method"] == "pilora")
    answer(folder, "export", row["run_id"], "--to", "plan", "--out", tmp_path / "out")
    kept, out = folder / STATE / "mlartifacts" / row["run_id"] / "artifacts", tmp_path / "out"
    plan = json.loads((out / "plan.json").read_text())
    assert plan == json.loads((kept / "plan.json").read_text())
    assert plan["digest"] == row["plan_digest"]
    assert (out / "plan.safetensors").read_bytes() == (kept / "plan.safetensors").read_bytes()
    assert yaml.safe_load((out / "choice.yaml").read_text()) == row["choice"]


def test_a_trial_is_exported_with_what_it_has_learned(folder: Path, tmp_path: Path) -> None:
    best = recorded(folder, "finished")["best"]
    run_id = next(row["run_id"] for row in best if row["method"] == "joint")
    answer(folder, "export", run_id, "--to", "merged", "--out", tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    check_it_does_what_was_measured(model, folder, run_id)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_sweep_that_was_cut_short_is_gone_on_with(short_folder: Path) -> None:
    folder = short_folder
    unpack(folder)
    (profile,) = recorded(folder, "profiles")
    stored = folder / STATE / "store" / "profiles" / profile["key"]
    before, file = trials_of(folder, "cut"), (stored / profile["file"]).stat()
    running = {n for n, trial in before.items() if trial.state == TrialState.RUNNING}

    result = answer(folder, "launch", "cut.yaml", "--resume")

    assert result["profile_cached"]
    assert result["profile_key"] == profile["key"]
    assert (stored / profile["file"]).stat().st_mtime_ns == file.st_mtime_ns
    assert result["states"].pop("cancelled") == len(running)
    assert sum(result["states"].values()) == 10

    after = trials_of(folder, "cut")
    for number, trial in before.items():
        if number in running:
            assert after[number].state == TrialState.FAIL
        else:
            assert without_run_id(after[number]) == without_run_id(trial)
    new = {number: trial for number, trial in after.items() if number not in before}
    assert {before[number].user_attrs["choice"] for number in running} <= {
        trial.user_attrs["choice"] for trial in new.values()
    }
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in new.values())

    runs = runs_of(folder)
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
    kinds = Counter(run.data.tags["ranksweep.kind"] for run in runs)
    assert (kinds["sweep"], kinds["profile"]) == (2, 1), "one was begun anew"
    rows = answer(folder, *EVERY)
    told = [{k: v for k, v in row.items() if k not in NEW} for row in rows]
    assert [row for row in recorded(folder, "best") if row not in told] == []
    numbers = {run.info.run_id: int(run.data.tags.get("ranksweep.number", -1)) for run in runs}
    values = {numbers[row["run_id"]]: row["value"] for row in rows if row["sweep"] == "cut"}
    complete = [trial for trial in after.values() if trial.state == TrialState.COMPLETE]
    assert values == {trial.number: trial.value for trial in complete}

    # The weights that the killed driver held have come to their runs.
    run_id = next(row["run_id"] for row in result["best"] if row["number"] in before)
    answer(folder, "export", run_id, "--to", "peft", "--out", folder / "out")
    base = AutoModelForSequenceClassification.from_pretrained(
        folder / "recorded_bert" / "model", num_labels=2
    )
    model = peft.PeftModel.from_pretrained(base, folder / "out")
    check_it_does_what_was_measured(model, folder, run_id)


def without_run_id(trial: FrozenTrial) -> dict[str, Any]:
    """All that a study says of a trial, but the run that MLflow may have been told of late."""
    told = {key: value for key, value in vars(trial).items() if key != "_user_attrs"}
    attributes = {k: v for k, v in trial.user_attrs.items() if k != "mlflow_run_id"}
    return told | {"user_attrs": attributes}
