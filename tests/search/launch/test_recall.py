"""What MLflow has lost of a sweep, or another one never had, is told again by the next launch."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import create_trial

from search.launch import recall
from search.launch.recall import Recall
from search.paths import SweepPaths
from search.study.study import choice_text
from search.tracking.facts import now_ms, plan_counts
from search.tracking.journal import Journal, end_of_trial
from search.tracking.tracker import Tracker
from search.tracking.weights import WeightFiles
from spaces.errors import TrackingError
from tests.search.observed import TAGS, Watched, choice_of, held, metrics_of, plan_of
from tests.search.toy_search import toy_study


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    paths = SweepPaths(tmp_path / "root", "toy")
    paths.make_sweep()
    return paths


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """What the study knows of the trials 0 (complete), 1 (pruned) and 2 (failed)."""
    study = toy_study(tmp_path)
    states = {0: "COMPLETE", 1: "PRUNED", 2: "FAIL"}
    for number, state in states.items():
        choice = choice_of(number)
        attributes: dict[str, Any] = {
            "choice": choice_text(choice),
            "arm": choice.method,
            "plan_digest": plan_of(choice.as_dict()).digest,
            "training": "t",
            "seed": 0,
        }
        epochs = {e: metrics_of(number, e)["accuracy"] for e in range(1, 3 - number)}
        value = epochs[2] if state == "COMPLETE" else None
        study.add_trial(
            create_trial(
                state=optuna.trial.TrialState[state],
                value=value,
                intermediate_values=epochs,
                user_attrs=attributes | ({"reason": "out of memory"} if number == 2 else {}),
            )
        )
    return study


def begun(uri: str, paths: SweepPaths) -> tuple[Tracker, str]:
    """A sweep whose three trials and one confirmation MLflow has been told whole."""
    tracker = Tracker(uri, "movie")
    sweep = tracker.start_sweep("toy", {}, TAGS, mark="m" * 32)
    watched = Watched(paths.sweep, tracker, sweep)
    for number in range(3):
        for step in watched.steps(number):
            step()
    choice = choice_of(0).as_dict()
    plan, journal = plan_of(choice), watched.journal
    run = journal.new_confirmation()
    body = {
        "kind": "confirm", "number": 0, "choice": choice, "metrics": plan_counts(plan),
        "tags": {"seed": 1, "arm": "lora", "plan_digest": plan.digest},
    }  # fmt: skip
    journal.start(run, body, now_ms(), (0, 1))
    journal.epoch(run, 2, {"metrics": {"test_accuracy": 0.25, "test_loss": 1.0}}, now_ms())
    journal.end(run, end_of_trial("complete", None, {}), now_ms(), 0.25)
    assert watched.close() == 0
    return tracker, sweep


def gone_on_with(
    uri: str,
    paths: SweepPaths,
    study: optuna.Study,
    experiment: str = "movie",
    tracked_before: str | None = None,
) -> tuple[Tracker, str, list[str]]:
    """What the next launch does first; the sweep's run and what it has said."""
    said: list[str] = []
    tracker = Tracker(uri, experiment)
    found = tracker.find_sweep("toy", "m" * 32)
    if found is None:
        sweep = tracker.start_sweep("toy", {}, TAGS, mark="m" * 32)
    else:
        sweep = found.run_id
        tracker.resume_sweep(sweep)
    journal = Journal(paths.journal)
    Recall(
        journal, study, tracker, sweep, paths, "here", "accuracy", "accuracy", plan_of, said.append,
        tracked_before,
    ).tell_again()  # fmt: skip
    journal.close()
    assert Watched(paths.sweep, tracker, sweep).close() == 0
    return tracker, sweep, said


def test_a_lost_database_is_told_all_that_it_had(
    database: str, tmp_path: Path, paths: SweepPaths, study: optuna.Study
) -> None:
    tracker, sweep = begun(database, paths)
    before = held(database, tracker, sweep, tmp_path)
    assert set(before) == {"0", "1", "2", "0 seed 1"}
    (first,) = (run for run in tracker.children(sweep) if run.number == 0 and run.seed is None)
    (confirmed,) = (run for run in tracker.children(sweep) if run.seed is not None)
    artifacts = tmp_path / "mlartifacts"
    weights = artifacts / first.run_id / "artifacts" / "weights.safetensors"
    weights.write_bytes(b"trial 0's")
    its = artifacts / confirmed.run_id / "artifacts" / "weights.safetensors"
    its.write_bytes(b"the confirmation's")
    fresh = f"sqlite:///{Path(database.removeprefix('sqlite:///')).with_name('fresh.db')}"

    tracker, sweep, said = gone_on_with(fresh, paths, study)
    assert held(fresh, tracker, sweep, tmp_path) == before
    assert said[0].startswith("MLflow lacks 3 trials and 1 confirmation run of this sweep")
    assert len(said) == 1
    assert WeightFiles(paths.weights, "trial").file(0).read_bytes() == b"trial 0's", (
        "for trial 0's new run"
    )

    kept = WeightFiles(paths.confirmed_weights, "confirmation")
    assert kept.file(1).read_bytes() == b"the confirmation's"

    # Once it has them, and where another has had them all along, nothing is told again.
    weights.unlink()
    its.unlink()
    for uri in (fresh, database, fresh):
        tracker, sweep, said = gone_on_with(uri, paths, study)
        assert held(uri, tracker, sweep, tmp_path) == before
        assert said == []


def test_an_older_copy_of_the_database_is_told_what_it_lacks(
    tmp_path: Path, paths: SweepPaths, study: optuna.Study, database: str
) -> None:
    tracker, sweep = begun(database, paths)
    before = held(database, tracker, sweep, tmp_path)
    client = MlflowClient(tracking_uri=database)
    lost, half = (run for run in tracker.children(sweep) if run.number in (0, 1) and not run.seed)
    with sqlite3.connect(tracker.uri.removeprefix("sqlite:///")) as copy:
        for table in ("metrics", "latest_metrics", "params", "tags"):
            copy.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (lost.run_id,))
        copy.execute("DELETE FROM runs WHERE run_uuid = ?", (lost.run_id,))
        copy.execute("DELETE FROM metrics WHERE run_uuid = ? AND step = 2", (half.run_id,))
        copy.execute("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = ?", (half.run_id,))
    client.set_tag(half.run_id, "ranksweep.status", "running")

    tracker, sweep, said = gone_on_with(database, paths, study)
    assert held(database, tracker, sweep, tmp_path) == before
    assert said[0].startswith("MLflow lacks 2 trials of this sweep")


def test_a_run_that_somebody_has_deleted_stays_deleted(
    database: str, tmp_path: Path, paths: SweepPaths, study: optuna.Study
) -> None:
    tracker, sweep = begun(database, paths)
    (deleted,) = (run for run in tracker.children(sweep) if run.number == 1)
    tracker.client.delete_run(deleted.run_id)

    tracker, sweep, said = gone_on_with(database, paths, study)
    assert set(held(database, tracker, sweep, tmp_path)) == {"0", "2", "0 seed 1"}
    assert said == []


def test_what_only_the_study_knows_is_told_as_far_as_it_knows(
    database: str, tmp_path: Path, paths: SweepPaths, study: optuna.Study
) -> None:
    """An older ranksweep kept no record of what it had told."""
    tracker, sweep = begun(database, paths)
    before = held(database, tracker, sweep, tmp_path)
    with sqlite3.connect(paths.journal) as journal:
        journal.execute("DROP TABLE told")

    tracker, sweep, said = gone_on_with(database, paths, study, "another")
    told_now = held(database, tracker, sweep, tmp_path)
    after = {name.removesuffix(" seed 0"): trial for name, trial in told_now.items()}
    assert after.keys() == before.keys()
    for name, trial in after.items():
        for file in ("plan.json", "plan.safetensors"):
            assert trial["files"][file] == before[name]["files"][file]
        assert trial["params"] == before[name]["params"]
        assert trial["status"] == before[name]["status"]
        for metric in ("accuracy", "test_accuracy", "trainable_params"):
            told = [value for _, value in trial["metrics"].get(metric, [])]
            assert told == [value for _, value in before[name]["metrics"].get(metric, [])]
    assert "of 4 the searched metric is all that is known" in said[0]
    assert "weights that 3 trials and 1 confirmation run" in said[1]


# -- weights ---------------------------------------------------------------------------------------


def with_weights(tracker: Tracker, sweep: str, folder: Path) -> None:
    """Put weights among the artifacts of trial 0 and of its confirmation."""
    for run in tracker.children(sweep):
        if run.number == 0:
            file = folder / run.run_id / "artifacts" / "weights.safetensors"
            file.write_text("confirmed" if run.seed else "searched")


def kept_weights(paths: SweepPaths) -> dict[str, str]:
    """What the next launch gives to the new runs."""
    kept = {"searched": paths.weights, "confirmed": paths.confirmed_weights}
    files = {name: [*folder.glob("*/*")] for name, folder in kept.items()}
    return {name: file.read_text() for name, found in files.items() for file in found}


BOTH = {"searched": "searched", "confirmed": "confirmed"}


@pytest.mark.parametrize("place", ["another experiment", "another database"])
def test_weights_come_along_from_where_the_launch_before_has_tracked_to(
    place: str, database: str, tmp_path: Path, paths: SweepPaths, study: optuna.Study
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    client = MlflowClient(tracking_uri=database)
    client.create_experiment("movie", elsewhere.as_uri())
    with_weights(*begun(database, paths), elsewhere)
    uri = database
    if place == "another database":
        (tmp_path / "new").mkdir()
        uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    _, _, said = gone_on_with(uri, paths, study, "another", tracked_before=database)
    assert kept_weights(paths) == BOTH
    assert len(said) == 1


@pytest.mark.parametrize("answers", [0, 1])
def test_a_server_that_does_not_answer_is_asked_no_more(
    answers: int,
    database: str,
    tmp_path: Path,
    paths: SweepPaths,
    study: optuna.Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    class Server:
        """Answers so many times, and no more."""

        def __init__(self, uri: str) -> None:
            self.answer()

        def find(self, run_id: str) -> None:
            self.answer()

        def answer(self) -> None:
            asked.append(self)
            if len(asked) > answers:
                raise TrackingError("no answer")

    begun(database, paths)
    monkeypatch.setattr(recall, "RecordedRuns", Server)
    uri = f"sqlite:///{tmp_path}/fresh.db"
    _, _, said = gone_on_with(uri, paths, study, tracked_before="http://dead")
    assert len(asked) == answers + 1
    assert "weights that 1 trial and 1 confirmation run may have kept stay" in said[1]


def test_weights_that_cannot_be_kept_do_not_end_the_launch(
    database: str, tmp_path: Path, paths: SweepPaths, study: optuna.Study
) -> None:
    with_weights(*begun(database, paths), tmp_path / "mlartifacts")
    paths.weights.write_text("in the way")
    _, _, said = gone_on_with(f"sqlite:///{tmp_path}/fresh.db", paths, study)
    assert kept_weights(paths) == {"confirmed": "confirmed"}
    assert said[1].startswith("weights that 1 trial may have kept stay with their earlier runs (")
    assert "\n" not in said[1]
