"""Whole launches that repeat their best choices, start from each other, and share a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from search.queries.best import best
from tests.search.launch.test_launch import config_of, run, runs_of


@pytest.mark.ray
def test_a_sweep_repeats_its_best_shares_its_study_and_is_what_the_next_one_starts_from(
    ray_cluster: None,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {
        "space": {"methods": ["pilora"]},
        "search.scheduler": "none",
        "search.trials": 5,
        "search.repeats": {"top": 1, "seeds": 2},
        "search.study": f"sqlite:///{tmp_path}/shared.db?timeout=60",
        "train.epochs": 1,
        "train.seed": 3,
    }
    first = run(config_of(tiny_sweep, tmp_path, name="first", **changes), tmp_path)
    assert first.states == {"complete": 5}
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{tmp_path}/shared.db")
    *firsts, last = [trial.user_attrs["seed"] for trial in study.trials]
    assert firsts == [3, 3, 3, 1003]
    assert last in (1003, 1004)  # of the next best, where the best has fallen
    values: dict[str, list[float]] = {}
    for trial in study.trials:
        values.setdefault(trial.user_attrs["choice"], []).append(trial.value)

    # MLflow says the same, and which seeds the trials were trained with.
    seeds = {run.data.tags["ranksweep.number"]: run.data.tags["ranksweep.seed"]
             for run in runs_of(tmp_path, "trial", "first")}  # fmt: skip
    assert seeds == {"0": "3", "1": "3", "2": "3", "3": "1003", "4": str(last)}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ranked = {each.run_id: each for each in best(uri, "tiny-sentiment", top=9)}
    assert sorted(each.seeds for each in ranked.values()) == sorted(map(len, values.values()))
    means = sorted(sum(each) / len(each) for each in values.values())
    assert sorted(each.value for each in ranked.values()) == pytest.approx(means)
    # The repeated choice stands in the result where its mean is its method's best.
    for each in first.best:
        assert each.run_id is not None
        assert ranked[each.run_id].value == pytest.approx(each.value)
        assert ranked[each.run_id].seeds == each.seeds
    sweep_file = yaml.safe_load((tmp_path / ".ranksweep/sweeps/first/sweep.yaml").read_text())
    assert sweep_file["search"]["study"] == f"sqlite:///{tmp_path}/shared.db?***"

    # A launch of the sweep from elsewhere finds its trials out and trains nothing.
    (tmp_path / "elsewhere").mkdir()
    config = config_of(tiny_sweep, tmp_path, name="first", **changes)
    again = run(config, tmp_path / "elsewhere")
    assert (again.ended_by, again.states) == ("trials", {"complete": 5})
    assert len(runs_of(tmp_path, "trial", "first")) == 5

    # The next sweep of the task and the base begins with what this one has found.
    capsys.readouterr()
    del changes["search.study"], changes["search.repeats"]
    second = run(
        config_of(
            tiny_sweep,
            tmp_path,
            name="second",
            **changes | {"search.trials": 6, "search.sampler": "tpe"},
        ),
        tmp_path,
    )
    said = capsys.readouterr()
    assert "start from earlier sweeps: " in said.out + said.err
    credited = [r for r in runs_of(tmp_path, "trial", "second")
                if "ranksweep.warm_start_from" in r.data.tags]  # fmt: skip
    assert 1 <= len(credited) <= 2
    for each in credited:
        origin = ranked[each.data.tags["ranksweep.warm_start_from"]]
        assert json.loads(each.data.tags["ranksweep.choice"]) == origin.choice
    assert second.states["complete"] == 6
