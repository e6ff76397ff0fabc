"""A search is watched without ever waiting for MLflow, and a dead driver's trials are ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
from mlflow import MlflowClient

from search.study.left_open import end_what_was_left_open
from search.study.study import INTERRUPTED
from search.tracking.facts import looks_in
from search.tracking.journal import Journal, JournalError
from search.tracking.tracker import Tracker
from tests.mlflow_server import MlflowServer
from tests.search.observed import TAGS, Watched, choice_of, held, plan_of
from tests.search.toy_search import toy_study

TIMEOUT_S = 6


@pytest.fixture
def brief_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client gives a silent server up after so many seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))


def observe(watched: Watched, numbers: range) -> None:
    for number in numbers:
        for step in watched.steps(number):
            step()


def expected_of(database: str, folder: Path, numbers: range) -> dict[str, object]:
    """What MLflow holds where it is never away."""
    (folder / "expected").mkdir()
    tracker = Tracker(database, "expected")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(folder / "expected", tracker, sweep)
    observe(watched, numbers)
    assert watched.close() == 0
    return held(database, tracker, sweep, folder)


@pytest.mark.server
@pytest.mark.parametrize("accident", ["it hangs", "it is killed"])
def test_a_server_that_is_away_is_not_waited_for_and_told_all_when_it_answers(
    server: MlflowServer, brief_requests: None, database: str, tmp_path: Path, accident: str
) -> None:
    tracker = Tracker(server.uri, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep, pause_s=0.5)
    observe(watched, range(3))
    if accident == "it hangs":
        server.pause()
    else:
        server.stop()
    away_since = time.monotonic()
    observe(watched, range(3, 23))
    observed = time.monotonic() - away_since
    assert observed < TIMEOUT_S, "one request that is waited for takes as long"
    time.sleep(TIMEOUT_S + 1 - observed)
    if accident == "it hangs":
        server.go_on()
    else:
        server.start()
    observe(watched, range(23, 25))
    assert watched.close() == 0

    told = held(server.uri, tracker, sweep, tmp_path)
    assert told == expected_of(database, tmp_path, range(25))
    answers = [text for text in watched.silent.said if text.startswith("MLflow answers again")]
    assert len(answers) == 1


@pytest.mark.server
def test_a_launch_that_ends_while_mlflow_is_away_says_what_is_left(
    server: MlflowServer, brief_requests: None, database: str, tmp_path: Path
) -> None:
    tracker = Tracker(server.uri, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep, pause_s=0.2)
    server.stop()
    observe(watched, range(2))
    watched.relay.close(hurried=lambda: True)
    (left,) = [text for text in watched.silent.said if "--resume" in text]
    assert left.startswith("MLflow has not been told 7 records")
    watched.journal.close()

    server.start()
    assert Watched(tmp_path, tracker, sweep).close() == 0
    told = held(server.uri, tracker, sweep, tmp_path)
    assert told == expected_of(database, tmp_path, range(2))


def test_looks_are_metrics_of_their_own(database: str, tmp_path: Path) -> None:
    tracker = Tracker(database, "movie")
    watched = Watched(tmp_path, tracker, tracker.start_sweep("sweep", {}, TAGS))
    for number, state in ((0, "pruned"), (1, "complete")):
        choice = choice_of(number)
        watched.recorder.trial_started(number, choice, plan_of(choice.as_dict()))
        watched.recorder.trial_look(number, 0.1, {"accuracy": 0.75})
        if state == "complete":
            watched.recorder.trial_epoch(number, 1, {"accuracy": 0.5, "epoch": 1})
        watched.recorder.trial_ended(number, state, {}, None)  # type: ignore[arg-type]
    assert watched.close() == 0
    client = MlflowClient(database)
    logged = [client.get_run(watched.silent.run_ids[number]).data.metrics for number in (0, 1)]
    assert [each["look_0.1"] for each in logged] == [0.75, 0.75]
    assert [each.get("accuracy") for each in logged] == [None, 0.5]
    assert [looks_in(each) for each in logged] == [{0.1: 0.75}, {0.1: 0.75}]


def test_what_a_full_disk_does_not_take_is_appended_once_it_does(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)

    is_full = True

    def unless_full(append: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            if is_full:
                raise JournalError("journal.db: the journal cannot be used (disk is full)")
            append(*arguments)

        return wrapped

    for kind in ("start", "epoch", "end"):
        monkeypatch.setattr(watched.journal, kind, unless_full(getattr(watched.journal, kind)))
    *befell, ended = watched.steps(0)
    for step in befell:
        step()
    is_full = False
    assert watched.journal.waiting == 0
    ended()
    assert watched.close() == 0

    assert len([text for text in watched.silent.said if "disk is full" in text]) == 1
    assert held(database, tracker, sweep, tmp_path) == expected_of(database, tmp_path, range(1))


def test_an_end_that_only_the_study_has_is_told_as_the_study_says(
    database: str, tmp_path: Path
) -> None:
    """The driver died after it had told the study and before it had told the journal."""
    study = toy_study(tmp_path)
    journal = Journal(tmp_path / "journal.db")
    for number in range(4):
        trial = study.ask()
        choice = choice_of(number).as_dict()
        plan = plan_of(choice)
        tags = {"arm": choice["method"], "plan_digest": plan.digest}
        journal.start(number, {"choice": choice, "tags": tags, "metrics": {}}, 1000)
        journal.epoch(number, 1, {"metrics": {"accuracy": 0.25}}, 1001)
        trial.report(0.25, 1)
        if number == 0:
            trial.report(0.5, 2)
            study.tell(trial, 0.5)
        elif number == 1:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif number == 2:
            trial.set_user_attr(INTERRUPTED, True)
            trial.set_user_attr("reason", "the driver ended before the trial did")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    end_what_was_left_open(journal, study, "accuracy")
    assert journal.left_open() == {}
    journal.close()

    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    assert Watched(tmp_path, tracker, sweep).close() == 0
    trials = held(database, tracker, sweep, tmp_path)
    assert [trials[str(n)]["tags"]["ranksweep.status"] for n in range(4)] == [
        "complete",
        "pruned",
        "interrupted",
        "interrupted",
    ]
    assert [trials[str(n)]["status"] for n in range(4)] == [
        "FINISHED",
        "KILLED",
        "KILLED",
        "KILLED",
    ]
    assert trials["0"]["metrics"]["accuracy"] == [(1, "0.25"), (2, "0.5")]
    assert trials["1"]["metrics"]["accuracy"] == [(1, "0.25")]
    assert trials["2"]["tags"]["ranksweep.error"] == "the driver ended before the trial did"


def test_the_journal_knows_the_runs_that_came_after_the_trials_had_ended(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)

    def ended(number: int, run_id: str) -> None:
        raise KeyError(number)

    watched.relay.on_run = ended
    observe(watched, range(2))
    assert watched.relay.close() == 0
    runs = {run.number: run.run_id for run in tracker.children(sweep)}
    assert watched.journal.run_ids(sweep) == runs
    assert watched.journal.run_ids("another run of the sweep") == {}


def test_a_run_begins_when_its_trial_trains_not_when_it_is_queued(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    recorder = watched.recorder
    shown = MagicMock()
    silent: Any = watched.silent
    silent.trial_started, silent.trial_finished = shown.started, shown.finished
    for number in (0, 3):
        choice = choice_of(number)
        recorder.trial_started(number, choice, plan_of(choice.as_dict()))
    recorder.trial_began(0, 1_000_000)
    assert set(watched.journal.left_open()) == {0}
    recorder.trial_ended(0, "cancelled", {}, "interrupted")
    recorder.trial_ended(3, "cancelled", {}, "interrupted")
    assert watched.close() == 0
    assert [call.args[0] for call in shown.started.call_args_list] == [0]
    assert [call.args[0] for call in shown.finished.call_args_list] == [0]

    runs = {run.number: tracker.run(run.run_id).info for run in tracker.children(sweep)}
    assert runs[0].start_time == 1_000_000
    assert 0 <= runs[3].end_time - runs[3].start_time < 1000, "it never began"


def test_a_trial_that_a_user_stops_before_it_begins_is_told_as_stopped(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    choice = choice_of(0)
    watched.recorder.trial_started(0, choice, plan_of(choice.as_dict()))
    watched.recorder.trial_ended(0, "stopped", {}, "stopped by a user")
    assert watched.close() == 0
    (told,) = tracker.children(sweep)
    assert (told.number, told.status, told.error) == (0, "stopped", "stopped by a user")
    assert not told.is_open


def test_a_trial_that_predicts_one_class_at_its_end_has_the_tag_in_mlflow(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "movie")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    for number, classes in enumerate([(2.0, 1.0), (1.0, 2.0)]):
        choice = choice_of(number)
        watched.recorder.trial_started(number, choice, plan_of(choice.as_dict()))
        for epoch, told in enumerate(classes, start=1):
            metrics = {"accuracy": 0.5, "epoch": epoch, "predicted_classes": told}
            watched.recorder.trial_epoch(number, epoch, metrics)
        watched.recorder.trial_ended(number, "complete", metrics, None)
    assert watched.close() == 0
    runs = {run.number: run for run in tracker.children(sweep)}
    assert {number: run.collapsed for number, run in runs.items()} == {0: True, 1: False}
    logged = held(database, tracker, sweep, tmp_path)
    assert logged["0"]["tags"]["ranksweep.collapsed"] == "true"
    assert "ranksweep.collapsed" not in logged["1"]["tags"]
    assert logged["0"]["metrics"]["predicted_classes"] == [(1, "2.0"), (2, "1.0")]
