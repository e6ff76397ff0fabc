"""What a sweep does is in MLflow, whole, under explicit run ids; a status is written last."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from search.queries.best import best
from search.tracking.facts import flattened
from search.tracking.mlflow import absolute_uri, connect
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, TrackingError
from spaces.plan import Block, Plan
from spaces.target import TargetModule
from tests.mlflow_server import MlflowServer
from tests.search.tracked import log_epoch, start_trial

ROOT = Path(__file__).parents[3]
CHOICE = {
    "method": "pilora",
    "rank": 8,
    "partition": {"rule": "top", "threshold": 0.25},
    "learning_rate": 2e-4,
    "seed": 0,
}
TAGS = {"task": "movie", "base": "b" * 64, "base_uri": "path:base", "metric": "accuracy"}
CONFIG = {
    "name": "movie-minilm",
    "task": {"text": ["sentence"]},
    "train": {"epochs": 3},
    "store": "s3://id:hunter2@bucket/dir?sig=topsecret",
}


def small_plan() -> Plan:
    """One block of 2 x (3 + 4) = 14 and, in a later stage, one of 1 x (3 + 1) = 4 numbers."""
    target = TargetModule("layer.query", (3, 4))
    rows, cols = np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32)
    first = Block(rank=2, rows=rows, cols=cols, scale=2.0, lr_scale=1.0)
    second = Block(rank=1, rows=rows, cols=cols[1:2], scale=1.0, lr_scale=1.5)
    return Plan.of([{"layer.query": [first]}, {"layer.query": [second]}], [target])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking") / "nested" / "mlflow.db"


@pytest.fixture(scope="module")
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def tracker(uri: str, request: pytest.FixtureRequest) -> Tracker:
    """An experiment of its own for each test, in one database."""
    return Tracker(uri, request.node.name)


def run_of(uri: str, run_id: str) -> Run:
    return MlflowClient(tracking_uri=uri).get_run(run_id)


def artifact(uri: str, run_id: str, name: str, folder: Path) -> bytes:
    path = MlflowClient(tracking_uri=uri).download_artifacts(run_id, name, str(folder))
    return Path(path).read_bytes()


# Sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_keeps_its_config_and_where_it_came_from(
    tracker: Tracker, uri: str, tmp_path: Path
) -> None:
    run_id = tracker.start_sweep("movie-minilm", CONFIG, TAGS)

    run = run_of(uri, run_id)
    assert run.info.status == "RUNNING"
    assert run.data.tags["ranksweep.kind"] == "sweep"
    assert run.data.tags["ranksweep.status"] == "running"
    assert run.data.tags["ranksweep.task"] == "movie"
    assert "torch" in json.loads(run.data.tags["ranksweep.versions"])
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["task.text"] == '["sentence"]'
    kept = yaml.safe_load(artifact(uri, run_id, "sweep.yaml", tmp_path))
    assert kept["task"] == {"text": ["sentence"]}
    assert kept["store"] == run.data.params["store"] == "s3://***@bucket/dir?***"


def test_a_sweep_keeps_what_was_told_of_its_rows(
    tracker: Tracker, uri: str, tmp_path: Path
) -> None:
    run_id = tracker.start_sweep("movie-minilm", CONFIG, TAGS)
    told = {"rows": {"train": 3}, "example": [{"text": "caf\u00e9", "loss": True}], "notes": ["a"]}
    tracker.log_task(run_id, told)
    assert json.loads(artifact(uri, run_id, "task.json", tmp_path)) == told


def test_a_sweep_is_found_again_by_its_name(tracker: Tracker) -> None:
    assert tracker.find_sweep("movie's") is None
    own = tracker.start_sweep("movie's", {}, {}, mark="m" * 32)
    newest = tracker.start_sweep("movie's", {}, {})
    tracker.start_sweep("another", {}, {})

    found = tracker.find_sweep("movie's")
    assert found is not None
    assert found.run_id == newest
    # A sweep of another folder that has the same name is another sweep.
    marked = tracker.find_sweep("movie's", "m" * 32)
    assert marked is not None
    assert marked.run_id == own
    assert tracker.find_sweep("movie's", "n" * 32) is None


def test_a_sweep_that_goes_on_no_longer_says_what_it_had_ended_with(
    tracker: Tracker, uri: str
) -> None:
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    tracker.end(sweep, "interrupted", error="Ctrl-C")
    tracker.resume_sweep(sweep)
    assert "ranksweep.error" not in run_of(uri, sweep).data.tags
    tracker.end(sweep, "complete")
    run = run_of(uri, sweep)
    assert (run.info.status, run.data.tags["ranksweep.status"]) == ("FINISHED", "complete")
    assert "ranksweep.error" not in run.data.tags


def test_tags_of_a_user_s_own_are_on_every_run(uri: str) -> None:
    tracker = Tracker(uri, "own tags", tags={"team": "search", "ticket: a": "12"})
    sweep = tracker.start_sweep("tagged", CONFIG, TAGS)
    runs = [sweep, start_trial(tracker, sweep, 0, CHOICE)]
    tracker.end(sweep, "complete", tags={"summary": "{}"})
    later = Tracker(uri, "own tags", tags={"team": "other"})
    later.resume_sweep(sweep)
    tags = [run_of(uri, run_id).data.tags for run_id in runs]
    assert [each["team"] for each in tags] == ["other", "search"]
    assert [each["ticket: a"] for each in tags] == ["12", "12"]
    assert "ranksweep.summary" not in tags[0], "its trials are not told by one that is going on"


def test_a_config_of_any_size_is_kept(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    config = {f"key{number}": number for number in range(250)}
    long = {"modules": ["layer.with.a.long.name"] * 400, "odd key é!": "x" * 5999}

    run_id = tracker.start_sweep("large", {**config, **long}, {"note": "y" * 9000})

    run = run_of(uri, run_id)
    assert {key: run.data.params[key] for key in config} == {k: str(v) for k, v in config.items()}
    assert "modules" not in run.data.params, "a value that MLflow would tear"
    assert run.data.params["odd key é_"] == "x" * 5999
    assert yaml.safe_load(artifact(uri, run_id, "sweep.yaml", tmp_path)) == {**config, **long}
    assert len(run.data.tags["ranksweep.note"]) < 8000


# Profiles -------------------------------------------------------------------------------------


def test_a_profile_is_one_run_that_later_sweeps_share(tracker: Tracker, uri: str) -> None:
    first = tracker.start_sweep("first", {}, TAGS)
    profile = tracker.start_profile(first, "k" * 64, {"rank": 8})
    tracker.end(profile, "complete", metrics={"seconds": 12.5, "scored_steps": 7})
    second = tracker.start_sweep("second", {}, TAGS)

    assert tracker.start_profile(second, "k" * 64) == profile
    assert tracker.start_profile(second, "l" * 64) != profile

    run = run_of(uri, profile)
    assert run.data.tags["ranksweep.kind"] == "profile"
    assert run.data.tags["ranksweep.profile_key"] == "k" * 64
    assert run.data.tags["ranksweep.task"] == "movie"
    assert run.data.tags["mlflow.parentRunId"] == first
    assert run.data.metrics == {"seconds": 12.5, "scored_steps": 7.0}
    assert run.info.status == "FINISHED"


def test_a_profile_may_stand_alone(tracker: Tracker, uri: str) -> None:
    alone = tracker.start_profile(None, "n" * 64, tags={"task": "movie"})
    tracker.end(alone, "complete")

    tags = run_of(uri, alone).data.tags
    assert "mlflow.parentRunId" not in tags
    assert tags["ranksweep.task"] == "movie"
    assert "ranksweep.versions" in tags
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    assert tracker.start_profile(sweep, "n" * 64) == alone


def test_a_profile_that_failed_is_not_shared(tracker: Tracker) -> None:
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    failed = tracker.start_profile(sweep, "m" * 64)
    tracker.end(failed, "failed", error="out of memory")

    assert tracker.find_profile("m" * 64) is None
    assert tracker.start_profile(sweep, "m" * 64) != failed


# Trials ---------------------------------------------------------------------------------------


def test_a_trial_says_all_that_a_query_needs(tracker: Tracker, uri: str, tmp_path: Path) -> None:
    sweep = tracker.start_sweep("sweep", {}, {**TAGS, "mode": "max"})
    profile = tracker.start_profile(sweep, "k" * 64)
    plan = small_plan()

    run_id = start_trial(tracker, sweep, 4, CHOICE, plan, {"group": "0"})

    run = run_of(uri, run_id)
    tags = {k.removeprefix("ranksweep."): v for k, v in run.data.tags.items()}
    assert run.data.tags["mlflow.parentRunId"] == sweep
    assert {key: tags[key] for key in ("task", "base", "base_uri", "metric", "mode")} == {
        **TAGS,
        "mode": "max",
    }
    assert (tags["kind"], tags["method"], tags["sweep"]) == ("trial", "pilora", "sweep")
    assert tags["profile_key"] == "k" * 64
    assert not {"profile_run", "versions", "git_commit"} & tags.keys()
    kept = json.loads(artifact(uri, run_id, "run.json", tmp_path))
    assert kept["profile_run"] == profile
    assert kept["versions"]["optuna"] == version("optuna")
    assert run.info.run_name == "4 pilora r8 2e-4"
    assert (tags["status"], tags["group"], tags["number"]) == ("running", "0", "4")
    assert tags["plan_digest"] == plan.digest
    assert json.loads(tags["choice"]) == CHOICE
    assert run.data.params["partition.threshold"] == "0.25"
    assert run.data.metrics == {"trainable_params": 18.0, "peak_trainable_params": 14.0}
    (tmp_path / "plan.safetensors").write_bytes(
        artifact(uri, run_id, "plan.safetensors", tmp_path / "..")
    )
    assert Plan.read(tmp_path / "plan.safetensors").digest == plan.digest
    assert yaml.safe_load(artifact(uri, run_id, "choice.yaml", tmp_path)) == CHOICE
    assert json.loads(artifact(uri, run_id, "plan.json", tmp_path))["trainable_params"] == 18


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("complete", "FINISHED"),
        ("pruned", "KILLED"),
        ("cancelled", "KILLED"),
        ("failed", "FAILED"),
    ],
)
def test_a_trial_ends_in_a_state(tracker: Tracker, uri: str, state: str, status: str) -> None:
    run_id = start_trial(tracker, tracker.start_sweep("sweep", {}, TAGS), 0, CHOICE)

    tracker.end(run_id, state, error="worker died")  # type: ignore[arg-type]

    run = run_of(uri, run_id)
    assert run.info.status == status
    assert run.info.end_time is not None
    assert run.data.tags["ranksweep.status"] == state
    assert run.data.tags["ranksweep.error"] == "worker died"


def test_the_status_is_the_last_thing_written(
    tracker: Tracker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_trial(tracker, tracker.start_sweep("sweep", {}, TAGS), 0, CHOICE, small_plan())

    def fails(*_: object, **__: object) -> None:
        raise OSError("the machine goes down")

    for step in ("log_batch", "set_terminated", "set_tag"):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, step, fails)
            with pytest.raises(TrackingError):
                tracker.end(run_id, "complete", metrics={"accuracy": 1.0})
        assert run_of(uri, run_id).data.tags["ranksweep.status"] == "running"
        assert best(uri, "movie", experiment=tracker.experiment) == []

    tracker.end(run_id, "complete", metrics={"accuracy": 1.0})
    assert len(best(uri, "movie", experiment=tracker.experiment)) == 1


def test_trials_may_be_written_from_many_threads(tracker: Tracker, uri: str) -> None:
    sweep = tracker.start_sweep("sweep", {}, TAGS)

    def trial(number: int) -> str:
        run_id = start_trial(tracker, sweep, number, CHOICE)
        for epoch in (1, 2, 3):
            log_epoch(tracker, run_id, epoch, {"accuracy": number / 10 + epoch / 100})
        tracker.end(run_id, "complete")
        return run_id

    with ThreadPoolExecutor(8) as pool:
        run_ids = list(pool.map(trial, range(8)))

    for number, run_id in enumerate(run_ids):
        assert run_of(uri, run_id).data.metrics["accuracy"] == number / 10 + 0.03


def test_a_resumed_sweep_closes_what_its_last_launch_left_open(uri: str) -> None:
    dead = Tracker(uri, "resume")
    sweep = dead.start_sweep("sweep", {}, TAGS)
    done = start_trial(dead, sweep, 0, CHOICE)
    dead.end(done, "complete", metrics={"accuracy": 0.5})
    left = start_trial(dead, sweep, 1, CHOICE)
    half = start_trial(dead, sweep, 2, CHOICE)
    MlflowClient(tracking_uri=uri).set_terminated(half, "FINISHED")
    stranger = start_trial(dead, dead.start_sweep("another", {}, TAGS), 0, CHOICE)

    alive = Tracker(uri, "resume")
    found = alive.find_sweep("sweep")
    assert found is not None
    assert found.run_id == sweep
    assert set(alive.resume_sweep(sweep)) == {left, half}

    for run_id in (left, half):
        run = run_of(uri, run_id)
        assert run.info.status == "KILLED"
        assert run.data.tags["ranksweep.status"] == "interrupted"
    assert run_of(uri, done).data.tags["ranksweep.status"] == "complete"
    assert run_of(uri, stranger).data.tags["ranksweep.status"] == "running"
    assert run_of(uri, sweep).info.status == "RUNNING"
    again = start_trial(alive, sweep, 3, CHOICE)
    assert run_of(uri, again).data.tags["ranksweep.task"] == "movie", "inherited from the server"
    alive.end(sweep, "complete", metrics={"trials": 3})
    assert run_of(uri, sweep).info.status == "FINISHED"


def test_a_sweep_of_more_trials_than_a_page_is_closed_whole(
    tracker: Tracker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.mlflow.PAGE", 2)
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    trials = {start_trial(tracker, sweep, number, CHOICE) for number in range(5)}

    assert set(tracker.close_interrupted(sweep)) == trials
    assert tracker.close_interrupted(sweep) == []


# The database ---------------------------------------------------------------------------------


def test_a_local_database_is_private_and_keeps_its_artifacts_beside_it(
    tracker: Tracker, uri: str, database: Path
) -> None:
    run_id = start_trial(tracker, tracker.start_sweep("sweep", {}, TAGS), 0, CHOICE)

    kept = database.parent / "mlartifacts" / run_id / "artifacts" / "choice.yaml"
    assert yaml.safe_load(kept.read_text()) == CHOICE
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700


def test_a_relative_uri_means_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    assert absolute_uri("sqlite:////a/b.db") == "sqlite:////a/b.db"
    assert absolute_uri("http://host:5000/x") == "http://host:5000/x"


OPENER = """
import sys
from search.tracking.tracker import Tracker
print("ready", flush=True)
sys.stdin.readline()
print(Tracker(sys.argv[1], "shared").experiment_id)
"""


@pytest.mark.command
def test_launches_that_create_the_database_at_once_share_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    outcomes = [opener.communicate("go\n", timeout=90) for opener in openers]

    assert len({output for output, _ in outcomes}) == 1, outcomes
    assert [errors for _, errors in outcomes] == ["", "", ""], "chatter on stderr"


def test_a_locked_database_is_waited_for(tracker: Tracker, uri: str, database: Path) -> None:
    run_id = start_trial(tracker, tracker.start_sweep("sweep", {}, TAGS), 0, CHOICE)
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, other.rollback)
    timer.start()
    try:
        log_epoch(tracker, run_id, 1, {"accuracy": 0.5})
    finally:
        timer.join()
        other.close()

    assert run_of(uri, run_id).data.metrics["accuracy"] == 0.5


READER = """
import sys, time
from search.queries.best import best
deadline = time.monotonic() + float(sys.argv[2])
rounds = 0
while time.monotonic() < deadline:
    best(sys.argv[1], "movie", metric="accuracy")
    rounds += 1
print(rounds)
"""


@pytest.mark.command
def test_a_sweep_is_written_while_another_process_reads(tracker: Tracker, uri: str) -> None:
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, uri, "4"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        number = 0
        while reader.poll() is None:
            run_id = start_trial(tracker, sweep, number, CHOICE)
            log_epoch(tracker, run_id, 1, {"accuracy": 0.5})
            tracker.end(run_id, "complete")
            number += 1
        output, _ = reader.communicate(timeout=30)
    finally:
        reader.kill()

    assert reader.returncode == 0
    assert int(output) > 0
    assert number > 0
    done = [run for run in tracker.children(sweep) if run.status == "complete"]
    assert len(done) == number


@pytest.mark.parametrize(
    "uri", ["mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:", "ftp://host", ""]
)
def test_what_mlflow_cannot_track_to_is_a_usage_error(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"^tracking.uri: .*; ") as caught:
        Tracker(uri, "experiment")
    assert "\n" not in str(caught.value)


def test_a_query_creates_no_database(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no database"):
        connect(f"sqlite:///{tmp_path}/mlflow.db", must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_is_a_tracking_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is text, not SQLite" * 100)
    with pytest.raises(TrackingError, match=r"^tracking: .*; check the file") as caught:
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "experiment")
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_a_usage_error(uri: str) -> None:
    gone = Tracker(uri, "gone")
    MlflowClient(tracking_uri=uri).delete_experiment(gone.experiment_id)
    with pytest.raises(ConfigError, match="deleted"):
        Tracker(uri, "gone")


def test_a_server_that_does_not_answer_is_given_up_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"; check that the server runs") as caught:
        Tracker("http://user:hunter2@127.0.0.1:9", "experiment")

    assert time.monotonic() - started < 15
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nested_choices_are_flattened_with_dots() -> None:
    nested = {"a": 1, "b": {"c": {"d": 2.5}, "e": "x"}, "f": {}}
    assert flattened(nested) == {"a": 1, "b.c.d": 2.5, "b.e": "x", "f": {}}


# A real server --------------------------------------------------------------------------------


@pytest.mark.server
def test_a_sweep_is_tracked_to_a_server(server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(server.uri, "movie-sentiment")
    sweep = tracker.start_sweep("movie-minilm", CONFIG, {**TAGS, "mode": "max"})
    profile = tracker.start_profile(sweep, "k" * 64, {"rank": 8})
    tracker.end(profile, "complete")
    plan = small_plan()
    for number, accuracy in enumerate([0.5, 0.875, 0.75]):
        run_id = start_trial(tracker, sweep, number, CHOICE, plan)
        log_epoch(tracker, run_id, 1, {"accuracy": accuracy})
        tracker.end(run_id, "complete" if number < 2 else "pruned", metrics={"head_params": 3})
    tracker.end(sweep, "complete")

    (row,) = best(server.uri, "movie")
    assert (row.value, row.trainable_params, row.profile_key) == (0.875, 18, "k" * 64)
    assert row.choice == CHOICE
    kept = artifact(server.uri, row.run_id, "plan.safetensors", tmp_path)
    assert Plan.from_bytes(kept).digest == row.plan_digest == plan.digest
    assert Tracker(server.uri, "movie-sentiment").find_profile("k" * 64) == profile
