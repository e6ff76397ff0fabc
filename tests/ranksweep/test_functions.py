"""What the functions of the package give: the same as the commands, as frames and typed rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml

import ranksweep
from search.launch.result import LaunchResult
from search.queries.best import BestRow
from search.queries.comparison import Confirmation
from search.queries.history import Step
from spaces.planner import Planner
from spaces.target import TargetModule
from tests.spaces.example_profiles import drawn_profile
from tests.trainables.families import Made, make

TARGETS = tuple(TargetModule(f"layer.{i}.query", (24, 16)) for i in range(3))
CHOICE = {"method": "sensitivity", "mean_rank": 4}


def names_of(kind: type[Any]) -> list[str]:
    return [each.name for each in fields(kind)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("bert", tmp_path_factory.mktemp("bert"))


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_is_that_of_the_planner_in_whatever_form_choice_and_profile_come(
    tmp_path: Path,
) -> None:
    profile = drawn_profile(TARGETS)
    wanted = Planner(TARGETS, profile).plan(CHOICE).digest
    profile.write(tmp_path / "a.safetensors")
    (tmp_path / "choice.yaml").write_text(yaml.safe_dump(CHOICE))
    for choice in (CHOICE, tmp_path / "choice.yaml", str(tmp_path / "choice.yaml")):
        for given in (profile, tmp_path / "a.safetensors"):
            assert ranksweep.plan(choice, profile=given).digest == wanted


def test_a_count_is_that_of_the_plan_and_needs_no_weights(bert: Made) -> None:
    lora = {"method": "lora", "rank": 3}
    counted = ranksweep.count(lora, base=bert.uri, targets=["query", "value"])
    planned = ranksweep.plan(lora, base=bert.uri, targets="query,value")
    assert counted.exact
    assert counted.trainable_params == (planned.trainable_params, planned.trainable_params)
    assert counted.percent[0] == pytest.approx(100 * planned.trainable_params / counted.base_params)
    ranged = ranksweep.count({"method": "taso"}, base=bert.uri, targets=["query"])
    assert (counted.modules, ranged.modules) == (4, 2)


def test_a_lora_config_has_the_ranks_of_the_plan() -> None:
    profile = drawn_profile(TARGETS)
    config = ranksweep.peft_config(CHOICE, profile)
    assert isinstance(config, peft.LoraConfig)
    ranks = {
        name: block.rank
        for name, (block,) in ranksweep.plan(CHOICE, profile=profile).stages[0].items()
    }
    ranks_told = config.rank_pattern or {}
    told = {name: ranks_told.get(name, config.r) for name in config.target_modules or ()}
    assert told == ranks


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "profile: give either"),
        ({"base": "path:x", "profile": "ab12"}, "profile: give either"),
        ({"base": "path:x"}, "targets: goes with base"),
        ({"profile": "ab12", "targets": "query"}, "targets: goes with base; a profile"),
        ({"base": "path:x", "targets": []}, "targets: names no module"),
    ],
)
def test_arguments_that_do_not_go_together_are_told(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ranksweep.ConfigError, match=line):
        ranksweep.plan({"method": "lora"}, **arguments)


def test_a_target_that_the_base_lacks_is_told_by_the_name_of_the_argument(bert: Made) -> None:
    with pytest.raises(ranksweep.ConfigError, match=r"^targets: "):
        ranksweep.count({"method": "lora"}, base=bert.uri, targets=["quarry"])


# -- sweeps ----------------------------------------------------------------------------------------


def tiny(sweep: Mapping[str, Any], folder: Path, **more: Any) -> dict[str, Any]:
    return {
        **copy.deepcopy(dict(sweep)),
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        **more,
    }


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"train.epoch": 2}, "train.epoch"),
        ({"train.epochs": 0}, "train.epochs"),
        ({"base.uri": "x"}, "overrides base.uri: base is not a mapping"),
        ({"train..epochs": 1}, "overrides: 'train..epochs' is no key"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_starts(
    tiny_sweep: dict[str, Any], overrides: dict[str, Any], line: str, tmp_path: Path
) -> None:
    given = tiny(tiny_sweep, tmp_path)
    before = copy.deepcopy(given)
    with pytest.raises(ranksweep.ConfigError, match=line):
        ranksweep.launch(given, overrides=overrides)
    assert given == before
    assert not list(tmp_path.iterdir())
    with pytest.raises(ranksweep.ConfigError, match="a list is no sweep"):
        ranksweep.launch([given])  # type: ignore[arg-type]
    with pytest.raises(ranksweep.ConfigError, match="no such file"):
        ranksweep.launch(tmp_path / "no.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def launched(
    ray_cluster: None, tiny_sweep: dict[str, Any], folder: Path
) -> tuple[LaunchResult, ranksweep.StoredProfile, str]:
    """A sweep of two methods from a mapping with paths and overrides, its profile, and what was
    printed."""
    import contextlib
    import io

    data = tiny_sweep["task"]["data"]
    task = {**tiny_sweep["task"], "data": {name: Path(file) for name, file in data.items()}}
    given = tiny(tiny_sweep, folder, task=task, confirm={"seeds": 2})
    over = {"search.trials": 2, "space.methods": ["pilora"], "search.scheduler": "none"}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        profile = ranksweep.profile(given, overrides=over, quiet=True)
        assert not printed.getvalue()
        result = ranksweep.launch(given, overrides=over)
    return result, profile, printed.getvalue()


@pytest.mark.ray
def test_a_launch_says_what_it_does_in_plain_lines_and_uses_the_ray_that_runs(
    launched: tuple[LaunchResult, ranksweep.StoredProfile, str],
) -> None:
    import ray

    result, profile, said = launched
    assert ray.is_initialized()
    assert (result.profile_cached, result.profile_key) == (True, profile.key)
    assert result.states == {"complete": 2}
    assert "connected to a Ray already" in said
    assert "trial 0:" in said
    assert "confirmed on test (accuracy)" in said
    assert "\x1b" not in said
    assert profile.modules["name"].tolist() == [each.name for each in profile.profile.targets]
    assert not profile.was_cached


@pytest.mark.ray
def test_frames_have_the_columns_and_the_values_of_the_typed_rows(
    launched: tuple[LaunchResult, ranksweep.StoredProfile, str], folder: Path
) -> None:
    at: Any = {"tracking": f"sqlite:///{folder / 'mlflow.db'}"}
    asked: list[tuple[Any, list[Any], type[Any]]] = [
        (
            ranksweep.best("tiny-sentiment", **at),
            ranksweep.best("tiny-sentiment", **at, rows=True),
            BestRow,
        ),
        (
            ranksweep.compare("tiny", **at),
            ranksweep.compare("tiny", **at, rows=True).rows,
            Confirmation,
        ),
        (
            ranksweep.history("tiny-sentiment", **at),
            ranksweep.history("tiny-sentiment", **at, rows=True),
            Step,
        ),
    ]
    for frame, rows, kind in asked:
        assert list(frame.columns) == names_of(kind)
        assert len(frame) == len(rows) > 0
        for name in ("method", "metric"):
            assert frame[name].tolist() == [getattr(row, name) for row in rows]
    told = ranksweep.frame(launched[0].confirmation or [])
    assert told["mean"].tolist() == asked[1][0]["mean"].tolist()
    assert "lora" in asked[1][0].attrs["verdict"].lower()
    with pytest.raises(ranksweep.Error, match="no complete trial of task 'other'"):
        ranksweep.best("other", **at)
    with pytest.raises(ranksweep.Error, match="no sweep of task 'other'"):
        ranksweep.history("other", **at)


@pytest.mark.ray
def test_predictions_on_the_test_rows_have_the_metric_that_the_run_has(
    launched: tuple[LaunchResult, ranksweep.StoredProfile, str],
    tiny_sweep: dict[str, Any],
    folder: Path,
) -> None:
    import pandas as pd
    from mlflow import MlflowClient

    result, _, _ = launched
    at = f"sqlite:///{folder / 'mlflow.db'}"
    run_id = result.best[0].run_id
    assert run_id is not None
    loaded = ranksweep.load(run_id, tracking=at)
    assert loaded.confirms == run_id
    logged = MlflowClient(at).get_run(loaded.run_id).data.metrics
    for split in ("dev", "test"):
        rows = pd.read_parquet(tiny_sweep["task"]["data"][split])
        told = ranksweep.predict(run_id, rows, tracking=at)
        right = float((told["prediction"] == told["label"]).mean())
        assert right == pytest.approx(logged[f"{split}_accuracy"], abs=1e-9)


def test_a_report_is_of_a_sweep_or_of_a_task() -> None:
    for given in ({}, {"sweep": "a", "task": "b"}):
        with pytest.raises(ranksweep.UsageError, match="name one of the two"):
            ranksweep.report(**given)
