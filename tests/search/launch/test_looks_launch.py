"""A launch with cheap looks beside one without: what trials are worth on all rows is the same."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from rich.console import Console

from search.cli.view import View
from search.cli.watch import drawn_state
from search.config.reading import parse_sweep
from search.launch.launch import launch
from search.launch.result import LaunchResult
from search.queries.best import best
from search.queries.sweep_state import SweepReader
from search.study.curves import looks_of
from search.study.trial_list import trial_rows
from search.tracking.runs import RecordedRuns


def launched(
    tiny_sweep: dict[str, Any], folder: Path, name: str, search: dict[str, Any]
) -> tuple[LaunchResult, list[optuna.trial.FrozenTrial], str]:
    """A sweep over a grid of three LoRAs; its result, its trials, and what the view has shown."""
    raw = copy.deepcopy(tiny_sweep) | {
        "name": name,
        "space": {"learning_rate": [1e-2, 1e-3, 1e-5], "methods": {"lora": {"rank": 2}}},
        "search": {"sampler": "grid", **search},
        "train": {"epochs": 2, "batch_size": 8},
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}", "keep_weights": "all"},
    }
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, View(name, console=Console(file=shown)) as view:
        patch.chdir(folder)
        result = launch(parse_sweep(raw), view=view)
    storage = f"sqlite:///{folder / '.ranksweep' / 'sweeps' / name / 'study.db'}"
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return result, trials, shown.getvalue()


@pytest.mark.ray
def test_a_trial_that_goes_on_to_all_rows_is_worth_what_it_is_without_looks(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    plain, without, _ = launched(tiny_sweep, tmp_path, "plain", {"scheduler": "none"})
    fidelity = {"fidelity": {"rows": [0.25, 1.0]}, "scheduler": {"reduction_factor": 2}}
    result, trials, shown = launched(tiny_sweep, tmp_path, "looks", fidelity)

    assert len(trials) == len(without) == 3
    whole = {trial.user_attrs["choice"]: trial for trial in without}
    assert all(looks_of(trial).keys() == {0.25} for trial in trials)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(complete) + len(pruned) == 3
    assert complete
    for trial in complete:
        same = whole[trial.user_attrs["choice"]]
        assert trial.intermediate_values == same.intermediate_values
        assert trial.values == same.values
    assert result.states == {
        name: len(some) for name, some in (("complete", complete), ("pruned", pruned)) if some
    }

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for trial in trials:
        run = client.get_run(trial.user_attrs["mlflow_run_id"])
        (look,) = looks_of(trial).values()
        assert run.data.metrics["look_0.25"] == look
        assert run.data.metrics.get("accuracy") == (trial.value if trial in complete else None)
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert ("weights.safetensors" in files) == (trial in complete)
        assert f"trial {trial.number}: look at 25% of the rows, value" in shown
    found = best(f"sqlite:///{tmp_path / 'mlflow.db'}", "tiny-sentiment", top=20)
    assert sorted(row.value for row in found) == sorted(t.value for t in [*without, *complete])

    reader = SweepReader(RecordedRuns(f"sqlite:///{tmp_path / 'mlflow.db'}", 5.0), "looks")
    state = reader.look()
    assert [each.looks for each in state.ended] == [looks_of(trial) for trial in trials]
    assert json.dumps([each.states for each in (state,)]) == json.dumps([result.states])
    assert list(drawn_state(state))
    study = optuna.load_study(
        study_name="looks",
        storage=f"sqlite:///{tmp_path / '.ranksweep' / 'sweeps' / 'looks' / 'study.db'}",
    )
    assert [row.looks for row in trial_rows(study)] == [looks_of(trial) for trial in trials]
    assert plain.best[0].value == max(trial.value for trial in without)
