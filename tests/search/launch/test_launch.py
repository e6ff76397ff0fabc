"""Whole launches on a tiny base: what they compute, log, keep, and refuse."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from search.cli.view import View
from search.config.reading import load_sweep
from search.config.sweep import SweepConfig
from search.launch.begun import Begun
from search.launch.dry_run import dry_run
from search.launch.launch import launch
from search.launch.prepare import prepare
from search.launch.profile_stage import ProfileStage
from search.launch.result import LaunchResult
from search.paths import SweepPaths
from search.queries.best import best
from search.queries.comparison import compare
from spaces.errors import ConfigError, UsageError
from spaces.methods.registry import make_plan, parse_choice
from spaces.plan import Plan
from trainables.adaptations.registry import adaptation_for
from trainables.bases.loading import load_base
from trainables.engine.workers import join
from trainables.tasks.measured_rows import ClassRows, read_measured_rows
from trainables.trained.weights import read_trained
from trainables.training.evaluate import evaluate, evaluate_rows

METHODS = ("lora", "pilora", "taso", "sensitivity", "joint")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launches")


def config_of(tiny_sweep: dict[str, Any], folder: Path, **changes: Any) -> SweepConfig:
    """The tiny sweep, its store and tracking in `folder`, some keys set."""
    data = copy.deepcopy(tiny_sweep) | {
        "store": f"file://{folder / 'store'}",
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(data))
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return load_sweep(folder / "sweep.yaml", overrides)


def run(config: SweepConfig, folder: Path, **options: Any) -> LaunchResult:
    with pytest.MonkeyPatch.context() as patch, View(config.name) as view:
        patch.chdir(folder)
        return launch(config, view=view, **options)


@pytest.fixture(scope="module")
def launched(
    ray_cluster: None, tiny_sweep: dict[str, Any], folder: Path
) -> tuple[SweepConfig, LaunchResult]:
    """One sweep of seven trials over the five methods, the best confirmed with two seeds."""
    config = config_of(
        tiny_sweep, folder,
        **{
            "search.trials": 7, "confirm": {"seeds": 2}, "search.scheduler": "none",
            "tracking.also": ["tensorboard"],
            "published": {"source": "A paper", "metric": "accuracy", "figures": {"taso": 55.5}},
        },
    )  # fmt: skip
    return config, run(config, folder)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path, kind: str, sweep: str | None = None) -> list[Any]:
    client = client_of(folder)
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()],
        f"tags.`ranksweep.kind` = '{kind}'", max_results=1000,
    )  # fmt: skip
    return [r for r in found if sweep is None or r.data.tags["ranksweep.sweep"] == sweep]


def study_of(folder: Path, name: str) -> optuna.Study:
    path = folder / ".ranksweep" / "sweeps" / name / "study.db"
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}")


@pytest.mark.ray
def test_a_launch_profiles_once_and_searches_every_method(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    _, result = launched
    assert not result.profile_cached
    assert result.states == {"complete": 7}
    assert {row.method for row in result.best} == set(METHODS)
    values = [row.value for row in result.best]
    assert values == sorted(values, reverse=True)
    manifest = folder / "store" / "profiles" / result.profile_key / "manifest.json"
    assert json.loads(manifest.read_text())["modules"] == 6


@pytest.mark.ray
def test_a_launch_tells_the_classes_and_what_is_to_be_known_of_them(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    config, _ = launched
    task = prepare(config).task
    log = (folder / ".ranksweep" / "sweeps" / "tiny" / "launch.log").read_text()
    (line,) = re.findall(r"classes: (.*)", log)
    for label, counts in task.class_counts().items():
        assert f"{label!r} {'/'.join(str(count) for count in counts.values())}" in line
    for note in task.notes:
        assert log.count(f"note: {note}") == 1


@pytest.mark.ray
def test_each_papers_default_and_a_lora_of_their_size_come_first(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    config, _ = launched
    trials = study_of(folder, "tiny").get_trials()
    assert [t.user_attrs["method"] for t in trials[:5]] == list(METHODS)
    sizes = [t.user_attrs["trainable_params"] for t in trials[:5]]
    prepared = prepare(config)
    ranks = [1, 2, 4, 8, 16, 32]
    options = [
        make_plan(parse_choice({"method": "lora", "rank": r}), prepared.targets, None)
        for r in ranks
    ]
    nearest = min(options, key=lambda plan: abs(plan.trainable_params - max(sizes[1:])))
    assert sizes[0] == nearest.trainable_params


@pytest.mark.ray
def test_mlflow_holds_the_sweep_the_profile_and_every_trial(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    _, result = launched
    client = client_of(folder)
    (sweep,) = runs_of(folder, "sweep", "tiny")
    (profile,) = runs_of(folder, "profile")
    trials = runs_of(folder, "trial", "tiny")
    assert sweep.info.run_id == result.sweep_run_id
    assert sweep.data.tags["ranksweep.status"] == "complete"
    for split, constant in result.constant_answers.items():
        assert constant.value >= 0.5, "the larger of two classes"
        assert sweep.data.metrics[f"constant_answer_{split}"] == constant.value
    assert set(result.constant_answers) == {"dev", "test"}
    assert profile.data.tags["ranksweep.profile_key"] == result.profile_key
    assert len(trials) == 7
    for trial in trials:
        tags = trial.data.tags
        assert trial.info.status == "FINISHED"
        assert tags["ranksweep.status"] == "complete"
        assert tags["mlflow.parentRunId"] == sweep.info.run_id
        assert tags["ranksweep.profile_key"] == profile.data.tags["ranksweep.profile_key"]
        assert tags["ranksweep.task"] == "tiny-sentiment"
        assert {"ranksweep.base", "ranksweep.method"} <= set(tags)
        told = client.download_artifacts(trial.info.run_id, "run.json")
        assert json.loads(Path(told).read_text())["profile_run"] == profile.info.run_id
        for metric in ("accuracy", "dev_loss", "train_loss", "learning_rate", "step_time"):
            history = client.get_metric_history(trial.info.run_id, metric)
            assert [point.step for point in history] == [1, 2], metric
        steps = [p.step for p in client.get_metric_history(trial.info.run_id, "step_loss")]
        assert len(steps) > 2, "points within an epoch"
        assert steps == sorted(set(steps))
        path = client.download_artifacts(trial.info.run_id, "plan.safetensors")
        plan = Plan.read(path)
        assert plan.digest == tags["ranksweep.plan_digest"]
        assert plan.trainable_params == trial.data.metrics["trainable_params"]
        assert tags["ranksweep.head_params"] == str(2 * 32 + 2)


@pytest.mark.ray
def test_best_answers_from_mlflow_alone_with_a_choice_that_makes_the_same_plan(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    config, result = launched
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    rows = best(uri, "tiny-sentiment", top=20)
    assert len(rows) == 7
    assert rows[0].value == result.best[0].value
    prepared = prepare(config)
    profile = prepared.store.get(prepared.key)
    for row in rows:
        again = make_plan(parse_choice(row.choice), prepared.targets, profile)
        assert again.digest == row.plan_digest
        assert again.trainable_params == row.trainable_params


@pytest.mark.ray
def test_the_study_says_of_every_trial_what_mlflow_says(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    trials = study_of(folder, "tiny").get_trials()
    assert Counter(t.state.name for t in trials) == {"COMPLETE": 7}
    logged_as = {run.data.tags["ranksweep.number"]: run for run in runs_of(folder, "trial", "tiny")}
    for trial in trials:
        logged = logged_as[str(trial.number)]
        # A trial may be over before MLflow has been told that it began.
        assert trial.user_attrs.get("mlflow_run_id") in (logged.info.run_id, None)
        assert logged.data.metrics["accuracy"] == trial.value
        assert sorted(trial.intermediate_values) == [1, 2]


@pytest.mark.ray
def test_tensorboard_has_the_curves_that_mlflow_has(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    metrics = {"trial": "accuracy", "confirm": "test_accuracy"}
    logged = sorted(
        (kind, point.step, point.value)
        for kind, metric in metrics.items()
        for run in runs_of(folder, kind, "tiny")
        for point in client_of(folder).get_metric_history(run.info.run_id, metric)
    )
    told = []
    for place in (folder / ".ranksweep" / "sweeps" / "tiny" / "tensorboard").iterdir():
        kind = place.name.partition("-")[0]
        events = EventAccumulator(str(place)).Reload().Tensors(metrics[kind])
        told += [(kind, e.step, float(make_ndarray(e.tensor_proto))) for e in events]
    assert sorted(told) == logged


@pytest.mark.ray
def test_confirmation_measures_the_best_of_each_method_on_test(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    _, result = launched
    assert result.confirmation is not None
    assert {row.method for row in result.confirmation} == set(METHODS)
    confirmed = runs_of(folder, "confirm")
    assert len(confirmed) == 10
    for row in result.confirmation:
        own = [r for r in confirmed if r.data.tags["ranksweep.method"] == row.method]
        assert {r.data.tags["ranksweep.seed"] for r in own} == {"1", "2"}
        logged = sorted(r.data.metrics["test_accuracy"] for r in own)
        assert logged == pytest.approx(sorted(row.values))
        assert row.mean == pytest.approx(sum(row.values) / 2)


@pytest.mark.ray
def test_the_best_and_their_confirmations_keep_weights_that_rebuild_what_was_measured(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    config, result = launched
    client, prepared = client_of(folder), prepare(config)
    best_numbers = {str(row.number) for row in result.best}
    alone = join()
    confirmed = runs_of(folder, "confirm", "tiny")
    for run_of_trial in [*runs_of(folder, "trial", "tiny"), *confirmed]:
        run_id, measured = run_of_trial.info.run_id, run_of_trial.data.metrics
        files = {file.path for file in client.list_artifacts(run_id)}
        kept = run_of_trial.data.tags["ranksweep.number"] in best_numbers
        assert ("weights.safetensors" in files) == kept
        assert ("test_rows.safetensors" in files) == (run_of_trial in confirmed)
        if not kept:
            continue
        trained = read_trained(
            Path(client.download_artifacts(run_id, "weights.safetensors")).read_bytes()
        )
        plan = Plan.read(client.download_artifacts(run_id, "plan.safetensors"))
        assert trained.facts.base_fingerprint == prepared.base_fingerprint
        assert trained.facts.method == run_of_trial.data.tags["ranksweep.method"]
        base = load_base(trained.facts.base_uri, trained.facts.task_kind, 2)
        head = trained.head_for(base.model)
        with adaptation_for(plan, base.model, seed=0, head=head) as adaptation:
            adaptation.load(trained.weights)
            again = evaluate(base.model, adaptation, prepared.task, "dev", alone)
            if run_of_trial in confirmed:
                file = client.download_artifacts(run_id, "test_rows.safetensors")
                rows = read_measured_rows(Path(file).read_bytes())
                _, now = evaluate_rows(base.model, adaptation, prepared.task, "test", alone)
                assert isinstance(rows, ClassRows)
                assert isinstance(now, ClassRows)
                assert np.array_equal(rows.predictions, now.predictions)
                assert (rows.predictions == rows.labels).mean() == measured["test_accuracy"]
        dev = "accuracy" if run_of_trial not in confirmed else "dev_accuracy"
        assert again["accuracy"] == measured[dev]
        assert again["dev_loss"] == pytest.approx(measured["dev_loss"], rel=1e-5)
    paths = SweepPaths(folder / ".ranksweep", "tiny")
    assert not [*paths.weights.glob("*"), *paths.confirmed_weights.glob("*")]


@pytest.mark.ray
def test_the_log_of_a_launch_has_its_trials_and_its_confirmation(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    log = SweepPaths(folder / ".ranksweep", "tiny").log.read_text()
    for number in range(7):
        assert f"trial {number}: " in log
    assert len(re.findall(r"trial \d: \w+ complete, ", log)) == 7
    assert log.count("ranksweep: confirm ") == 10


@pytest.mark.ray
def test_compare_reads_back_what_the_launch_confirmed(
    launched: tuple[SweepConfig, LaunchResult], folder: Path
) -> None:
    _, result = launched
    told = compare(f"sqlite:///{folder / 'mlflow.db'}", "tiny").rows
    assert result.confirmation is not None
    assert sorted(told, key=str) == sorted(result.confirmation, key=str)
    assert {row.method: row.paper for row in told} == {**dict.fromkeys(METHODS), "taso": 0.555}


@pytest.mark.ray
def test_a_second_sweep_takes_the_profile_from_the_store(
    launched: tuple[SweepConfig, LaunchResult], tiny_sweep: dict[str, Any], folder: Path
) -> None:
    _, first = launched
    config = config_of(
        tiny_sweep, folder,
        **{
            "name": "again", "search.trials": 2,
            "search.objectives": ["accuracy", "trainable_params"],
        },
    )  # fmt: skip
    result = run(config, folder)
    assert result.profile_cached
    assert result.profile_key == first.profile_key
    assert len(runs_of(folder, "profile")) == 1
    assert "profile" not in result.seconds
    trials = study_of(folder, "again").get_trials()
    assert len(trials) == 2
    for trial in trials:
        assert trial.state.name == "COMPLETE"
        assert trial.values[1] == trial.user_attrs["trainable_params"]
    only = runs_of(folder, "trial", "again")[0]
    assert only.data.tags["ranksweep.profile_key"] == first.profile_key


@pytest.mark.ray
def test_a_resumed_sweep_goes_on_where_it_stopped(
    launched: tuple[SweepConfig, LaunchResult], tiny_sweep: dict[str, Any], folder: Path
) -> None:
    """Here with another MLflow, which is told of the trials before too."""
    moved = folder / "moved"
    config = config_of(tiny_sweep, folder, **{"name": "again", "search.trials": 4,
        "search.objectives": ["accuracy", "trainable_params"],
        "tracking.uri": f"sqlite:///{moved / 'mlflow.db'}"})  # fmt: skip
    before = [t.number for t in study_of(folder, "again").get_trials()]
    result = run(config, folder, resume=True)
    trials = study_of(folder, "again").get_trials()
    assert result.states == {"complete": 4}
    assert [t.number for t in trials][: len(before)] == before

    (sweep,) = runs_of(moved, "sweep", "again")
    assert sweep.data.tags["ranksweep.status"] == "complete"
    told = {int(r.data.tags["ranksweep.number"]): r for r in runs_of(moved, "trial", "again")}
    earlier = {int(r.data.tags["ranksweep.number"]): r for r in runs_of(folder, "trial", "again")}
    assert sorted(told) == [0, 1, 2, 3]
    assert sorted(earlier) == before
    for number, logged in earlier.items():
        assert told[number].data.metrics == logged.data.metrics
        assert told[number].data.params == logged.data.params
        assert told[number].info.start_time == logged.info.start_time
    for row in result.best:
        files = {file.path for file in client_of(moved).list_artifacts(row.run_id)}
        assert {"plan.safetensors", "weights.safetensors"} <= files
    assert result.untold == 0


@pytest.mark.ray
def test_a_name_is_used_once_and_resumed_as_it_was(
    launched: tuple[SweepConfig, LaunchResult], tiny_sweep: dict[str, Any], folder: Path
) -> None:
    config, _ = launched
    with pytest.raises(ConfigError, match=r"name: .*--resume"):
        run(config, folder)
    changed = config_of(tiny_sweep, folder, **{"train.epochs": 3, "search.trials": 7,
        "confirm": {"seeds": 2}, "search.scheduler": "none"})  # fmt: skip
    with pytest.raises(ConfigError, match=r"train\.epochs: differs from the sweep 'tiny'"):
        run(changed, folder, resume=True)
    fresh = config_of(tiny_sweep, folder, name="never-launched")
    with pytest.raises(ConfigError, match="no sweep 'never-launched'"):
        run(fresh, folder, resume=True)


def test_rows_that_were_corrected_since_are_refused_and_a_moved_folder_is_not(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(tiny_sweep["base"].removeprefix("path:")).parent, tmp_path / "a")

    def moved_to(place: str) -> SweepConfig:
        where = {split: str(tmp_path / place / f"{split}.parquet") for split in ("train", "dev")}
        sweep = copy.deepcopy(tiny_sweep) | {"base": f"path:{tmp_path / place / 'base'}"}
        sweep["task"]["data"] |= where
        return config_of(sweep, tmp_path)

    config = moved_to("a")
    paths = SweepPaths(tmp_path / ".ranksweep", config.name)
    paths.make_sweep()
    Begun.by(prepare(config)).write(paths)
    paths.sweep_file.write_text(yaml.safe_dump(config.resolved()))

    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert dry_run(moved_to("b"), resume=True).config["base"].endswith("/b/base")

    rows = pq.read_table(tmp_path / "b" / "dev.parquet").to_pylist()
    rows[3]["label"] = {"positive": "negative", "negative": "positive"}[rows[3]["label"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b" / "dev.parquet")
    with pytest.raises(ConfigError, match=r"^task\.data: dev has other rows than the sweep 'tiny'"):
        run(moved_to("b"), tmp_path, resume=True)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("profile.rank", 3),
        ("profile.epochs", 2),
        ("profile.score_every", 5),
        ("profile.calibration_batches", 4),
        ("profile.batch_size", 8),
        ("profile.top_percent", [1, 2, 5]),
        ("profile.seed", 1),
        ("profile.target_modules", ["query"]),
        ("profile.learning_rate", 1e-3),
        ("task.max_length", 12),
        ("task.rows.train", 90),
        ("train.precision", "bf16"),
    ],
)
def test_another_base_task_or_setting_is_another_key(
    key: str, value: Any, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    space = {"space": {"methods": ["pilora"]}}
    was = prepare(config_of(tiny_sweep, tmp_path, **space)).key
    now = prepare(config_of(tiny_sweep, tmp_path, **space, **{key: value})).key
    assert was != now


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", 5),
        ("search.trials", 3),
        ("task.metric", "f1"),
        ("task.rows.dev", 20),
        ("name", "x"),
        ("cluster.groups", 2),
    ],
)
def test_what_does_not_touch_the_profile_leaves_its_key(
    key: str, value: Any, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    was = prepare(config_of(tiny_sweep, tmp_path)).key
    now = prepare(config_of(tiny_sweep, tmp_path, **{key: value})).key
    assert was == now


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("profile.target_modules", ["qury"], "qury"),
        ("profile.rank", 40, "profile.rank: 40 is above"),
        ("space.methods", {"sensitivity": {"mean_rank": [400]}}, "sensitivity.mean_rank"),
        ("task.label", "lable", "lable"),
        ("task.text", ["text"], "text"),
        ("task.data.train", "absent.parquet", "absent.parquet"),
        ("task.data.test", None, "confirm"),
        ("base", "path:nowhere", "nowhere"),
        ("cluster.resources_per_worker", {"CPU": 1000}, "cluster.resources_per_worker"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_is_refused_before_anything_starts(
    key: str, value: Any, said: str, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"confirm": {"seeds": 1}} if said == "confirm" else {}
    config = config_of(tiny_sweep, tmp_path, **{**changes, key: value})
    with pytest.raises(UsageError) as refused:
        run(config, tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / ".ranksweep").exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert mlflow.active_run() is None


@pytest.mark.command
def test_ray_is_not_imported_before_it_is_said_where_it_may_listen() -> None:
    """Ray reads at import whether to listen on loopback alone."""
    code = """if True:
        import os, sys
        from search.config.reading import parse_sweep
        from search.launch import launch

        assert "ray" not in sys.modules
        task = {"name": "t", "data": {"train": "t.csv", "dev": "d.csv"}, "text": "text"}
        launch.check_name = lambda *_: None
        launch.prepare = lambda *_: sys.exit(os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"])
        launch.launch(parse_sweep({"base": "path:b", "task": task}), view=None)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0"


@pytest.mark.parametrize("accident", ["Ctrl-C", "Ray"])
@pytest.mark.parametrize(
    ("profile_only", "told"),
    [
        (True, "start it again, and the profile goes on from its last checkpoint"),
        (False, "launch with --resume goes on with this sweep"),
    ],
)
def test_what_is_cut_off_says_how_it_goes_on(
    accident: str,
    profile_only: bool,
    told: str,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    when_ray_dies: list[Callable[[str], None]] = []

    def ray_cluster(*arguments: Any) -> AbstractContextManager[None]:
        when_ray_dies.append(arguments[-1])
        return nullcontext()

    def cut_off(*_: Any) -> None:
        if accident == "Ray":
            when_ray_dies[0]("raylet")
        raise KeyboardInterrupt

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.launch.ray_cluster.ray_cluster", ray_cluster)
    monkeypatch.setattr("trainables.resident.groups.ResidentWorkers", lambda **_: nullcontext())
    monkeypatch.setattr(ProfileStage, "obtained", cut_off)
    monkeypatch.setattr(os, "_exit", leave)
    said: list[str] = []
    config = config_of(tiny_sweep, tmp_path)
    with View(config.name) as view:
        monkeypatch.setattr(view, "message", said.append)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            launch(config, view=view, profile_only=profile_only)
    assert said[-1].endswith(told)


def test_a_sweep_that_is_being_run_is_left_alone(
    tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(tiny_sweep, tmp_path)
    paths = SweepPaths(name=config.name).absolute()
    held = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); "
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    paths.make_sweep()
    with subprocess.Popen(
        [sys.executable, "-c", held, str(paths.lock)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"is being run by process {other.pid}"):
            run(config, tmp_path)
        assert other.stdin is not None
        other.stdin.close()
    assert not paths.sweep_file.exists()
