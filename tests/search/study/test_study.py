"""What a study says of its trials, repetitions with other seeds, and several drivers on one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import DatabaseError, OperationalError

from search.config.database import study_url
from search.config.reading import parse_sweep
from search.launch.confirm import confirm_best
from search.study.ranking import WorthKeeping, best_of_each_method
from search.study.shared import SharedStudy, check_settings, ended_last_trial, own_seed
from search.study.standing import interrupted
from search.study.study import open_study
from spaces.errors import ConfigError
from spaces.methods.registry import make_plan, parse_choice
from tests.search.study.test_searcher import asked, finish, row
from tests.search.toy_search import (
    ACCURACY,
    TARGETS,
    handed_out,
    searcher_over,
    toy_space,
    toy_study,
)
from trainables.resident.jobs import TrialJob, TrialResult

GRACE = 3


def lora(rank: int) -> Any:
    return parse_choice({"method": "lora", "rank": rank, "learning_rate": 1e-3})


def test_the_last_trials_repeat_the_best_choices_with_other_seeds_and_the_mean_ranks(
    tmp_path: Path,
) -> None:
    space = toy_space("lora")
    # What each rank scores with the sweep's seed, 7, and with the seeds of repetitions.
    scores = {
        (8, 7): 0.90, (8, 1007): 0.60, (8, 1008): 0.60,
        (4, 7): 0.85, (4, 1007): 0.83, (4, 1008): 0.84,
        (2, 7): 0.50,
    }  # fmt: skip
    enqueued = [lora(rank) for rank in (2, 4, 8)]
    settings: dict[str, Any] = {"trials": 7, "seed": 7, "repeats": (2, 2), "enqueue": enqueued}
    trained: list[tuple[int, int, int | None]] = []
    for stop_after in (4, 7):  # the driver dies in the middle of the repetitions, and is resumed
        study = toy_study(tmp_path)
        interrupted(study)
        searcher = searcher_over(study, space, **settings)
        for number in range(len(trained), stop_after):
            given = asked(searcher, f"t{number}")
            key = given["choice"]["rank"], given["seed"]
            trained.append((*key, given["repeat"]))
            assert given["choice"]["learning_rate"] == 1e-3
            finish(searcher, f"t{number}", scores[key])
        if stop_after == 4:
            searcher.suggest("cut off")
    assert searcher.suggest("more") == Searcher.FINISHED
    assert trained == [
        (2, 7, 0), (4, 7, 0), (8, 7, 0),
        # 8 falls with its second seed, and makes room for 4.
        (8, 1007, 1), (4, 1007, 1), (4, 1008, 2), (8, 1008, 2),
    ]  # fmt: skip
    (best,) = best_of_each_method(study, ACCURACY)
    assert best.value == pytest.approx((0.85 + 0.83 + 0.84) / 3)
    assert best.values == [0.85, 0.83, 0.84]
    assert (best.seeds, best.number) == (3, 1)
    ranks = [row.choice["rank"] for row in best_of_each_method(study, ACCURACY, top=3)]
    assert ranks == [4, 8, 2]
    assert WorthKeeping(study, ACCURACY)() == {1}
    assert len(handed_out(study)) == 7
    assert study.trials[3].params == study.trials[2].params


def test_a_repetition_that_fails_is_not_tried_for_ever(tmp_path: Path) -> None:
    searcher = searcher_over(
        toy_study(tmp_path), toy_space("lora"), trials=3, repeats=(1, 1), enqueue=[lora(2), lora(4)]
    )
    for number in range(2):
        searcher.suggest(f"t{number}")
        finish(searcher, f"t{number}")
    assert asked(searcher, "t2")["repeat"] == 1
    searcher.on_trial_complete("t2", error=True)
    assert searcher.suggest("t3") == Searcher.FINISHED


# -- several drivers -------------------------------------------------------------------------------


def shared_study(folder: str, driver: str) -> Any:
    return open_study(
        f"sqlite:///{folder}/study.db",
        "shared",
        objectives=("accuracy",),
        mode="max",
        sampler="tpe",
        seed=own_seed(0, driver),
        beat_seconds=1,
        grace_seconds=GRACE,
    )


def drive(folder: str, driver: str, trials: int, hangs: bool = False) -> None:
    """One driver's whole search, without Ray: ask, train on paper, tell."""
    study = shared_study(folder, driver)
    shared = SharedStudy(study, driver, GRACE)
    space = toy_space()
    searcher = searcher_over(
        study,
        space,
        trials=trials,
        shared=shared,
        enqueue=[space.default_choice(method) for method in space.methods],
    )
    number = 0
    while (given := searcher.suggest(f"t{number}")) != Searcher.FINISHED:
        if given is None:
            time.sleep(0.2)
            continue
        if hangs:
            (Path(folder) / "holds").write_text(json.dumps(given))
            time.sleep(600)
        assert isinstance(given, dict)
        finish(searcher, f"t{number}", 0.5 + given["choice"]["learning_rate"])
        number += 1
    shared.close()


def started(folder: Path, driver: str, trials: int, hangs: bool = False) -> Any:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=drive, args=(str(folder), driver, trials, hangs))
    process.start()
    return process


def joined(processes: list[Any]) -> None:
    for process in processes:
        process.join(300)
        assert process.exitcode == 0


@pytest.mark.group
def test_four_drivers_share_the_trials_of_one_study_and_train_none_twice(tmp_path: Path) -> None:
    shared_study(str(tmp_path), "first")
    joined([started(tmp_path, f"driver {i}", 20) for i in range(4)])
    study = shared_study(str(tmp_path), "last")
    counted = handed_out(study)
    assert len(counted) == 20
    assert {trial.state for trial in counted} == {TrialState.COMPLETE}
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}
    assert len({trial.user_attrs["training"] for trial in counted}) == 20
    # Each default was handed out once, and each method had its share but for what was under way.
    space = toy_space()
    choices = Counter(trial.user_attrs["choice"] for trial in counted)
    for method in space.methods:
        default = json.dumps(space.default_choice(method).as_dict(), sort_keys=True)
        assert choices[default] == 1
    assert all(2 <= n <= 6 for n in Counter(t.user_attrs["method"] for t in counted).values())
    # One of them, and one only, goes on to what follows the search.
    drivers = {trial.user_attrs["driver"] for trial in counted}
    assert sum(ended_last_trial(study, f"driver {i}") for i in range(4)) == 1
    assert drivers <= {f"driver {i}" for i in range(4)}


@pytest.mark.group
def test_the_trial_of_a_driver_that_was_killed_is_trained_by_another(tmp_path: Path) -> None:
    shared_study(str(tmp_path), "first")
    killed = started(tmp_path, "killed", 6, hangs=True)
    holds = tmp_path / "holds"
    while not (holds.exists() and holds.read_text()):
        time.sleep(0.1)
    other = started(tmp_path, "other", 6)
    held = json.loads(holds.read_text())
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    joined([other])
    study = shared_study(str(tmp_path), "last")
    left = study.trials[held["number"]]
    assert left.state == TrialState.FAIL
    assert left.user_attrs["ranksweep_interrupted"]
    counted = handed_out(study)
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * 6
    again = [t for t in counted if json.loads(t.user_attrs["choice"]) == held["choice"]]
    assert [trial.user_attrs["driver"] for trial in again] == ["other"]


def test_a_driver_leaves_alone_what_another_that_lives_trains(tmp_path: Path) -> None:
    one, two = (shared_study(str(tmp_path), name) for name in ("one", "two"))
    first, second = SharedStudy(one, "one", GRACE), SharedStudy(two, "two", GRACE)
    searcher = searcher_over(one, trials=2, shared=first)
    searcher.suggest("t0")
    # `two` starts, and `one` is resumed in its folder after its process has died.
    assert interrupted(two, second.left_behind(at_start=True)) == []
    resumed = SharedStudy(shared_study(str(tmp_path), "one"), "one", GRACE)
    assert resumed.left_behind(at_start=True) == {0}
    for each in (first, second, resumed):
        each.close()


def test_a_trial_that_others_have_taken_over_is_not_told_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = shared_study(str(tmp_path), "slow")
    shared = SharedStudy(study, "slow", GRACE)
    searcher = searcher_over(study, trials=2, shared=shared)
    searcher.suggest("t0")
    interrupted(shared_study(str(tmp_path), "other"), {0})
    searcher.on_trial_result("t0", row(1, 0.5))
    finish(searcher, "t0")
    ended = searcher.ended_trial("t0")
    assert ended is not None
    assert (ended.state, ended.values) == ("cancelled", None)
    assert study.trials[0].state == TrialState.FAIL
    assert "another driver took it for left behind" in caplog.text
    shared.close()


def test_of_two_drivers_that_hand_out_the_last_trial_at_once_the_first_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (shared_study(str(tmp_path), name) for name in ("one", "two"))
    first, second = SharedStudy(one, "one", GRACE), SharedStudy(two, "two", GRACE)
    slower = searcher_over(two, toy_space("lora"), trials=1, shared=second, waits=lambda: False)
    faster = searcher_over(one, toy_space("lora"), trials=1, shared=first)
    propose = slower.proposals.propose

    def overtaken(*arguments: Any, **more: Any) -> Any:
        proposal = propose(*arguments, **more)
        faster.suggest("t0")  # between the other's look at the study and its trial
        return proposal

    monkeypatch.setattr(slower.proposals, "propose", overtaken)
    assert slower.suggest("t0") == Searcher.FINISHED
    kept, given_back = one.trials
    assert (kept.state, given_back.state) == (TrialState.RUNNING, TrialState.FAIL)
    assert given_back.user_attrs["ranksweep_rejected"].startswith("another driver was faster")
    assert len(handed_out(one)) == 1
    for each in (first, second):
        each.close()


def test_drivers_of_other_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    check_settings(study, {"train": {"epochs": 3}}, {})
    check_settings(toy_study(tmp_path), {"train": {"epochs": 3}}, {})
    with pytest.raises(ConfigError, match=r"^search\.study: its sweep 'toy' was begun with"):
        check_settings(toy_study(tmp_path), {"train": {"epochs": 4}}, {})


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+psycopg2://ann:s3cret@127.0.0.1:9/x", r"pip install 'ranksweep\[postgres\]'"),
        ("sqlite:////no/such/folder/study.db?s3cret", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_an_error_of_one_line_without_its_password(
    url: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        open_study(url, "x", objectives=("accuracy",), mode="max", sampler="tpe", seed=0)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("search.study: ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "The runtime optuna version 5.0 is no longer compatible with the table schema"
        ),
        StorageInternalError("An exception is raised during the commit"),
        OperationalError("x", {}, sqlite3.OperationalError("attempt to write a readonly database")),
        OperationalError("x", {}, sqlite3.OperationalError("database or disk is full")),
        DatabaseError("x", {}, sqlite3.DatabaseError("file is not a database")),
    ],
)
def test_what_a_storage_raises_when_it_is_opened_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_study(**_: Any) -> None:
        raise error

    monkeypatch.setattr(optuna, "create_study", create_study)
    with pytest.raises(ConfigError, match=r"^search\.study: .* cannot be opened \(") as caught:
        toy_study(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_study_that_no_other_launch_could_open_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^search\.study: names no file"):
        study_url(url)


def test_two_methods_whose_best_is_one_training_are_confirmed_by_one(tmp_path: Path) -> None:
    trained = []

    class Workers:
        def run(self, job: TrialJob, **_: Any) -> TrialResult:
            trained.append((job.learning_rate, job.seed))
            metrics = {"accuracy": job.seed / 10}
            return TrialResult(metrics, head_params=0, ready_at=0.0, first_step_at=0.0)

    task = {"name": "t", "data": {"train": "a.csv", "dev": "b.csv", "test": "c.csv"}, "text": ["s"]}
    config = parse_sweep(
        {
            "base": "path:x",
            "task": task,
            "confirm": {"seeds": 2},
            "tracking": {"keep_weights": "none"},
        }
    )
    rows = [
        {"method": arm, "arm": arm, "number": number, "trainable_params": 9,
         "choice": {"method": arm, "learning_rate": rate}}
        for arm, number, rate in (("lora", 3, 1e-3), ("pilora", 3, 1e-3), ("taso", 4, 2e-3))
    ]  # fmt: skip
    plan = make_plan(lora(2), TARGETS, None)
    found = confirm_best(
        rows,
        config=config,
        plans=[plan] * 3,
        workers=Workers(),  # type: ignore[arg-type]
        relay=MagicMock(journal=MagicMock(confirmed=dict)),
        tracker=MagicMock(children=lambda run_id: []),
        sweep_run_id="sweep",
        view=MagicMock(),
        kept=MagicMock(),
    )
    assert sorted(trained) == [(1e-3, 1), (1e-3, 2), (2e-3, 1), (2e-3, 2)]
    assert {each.arm: each.values for each in found} == dict.fromkeys(
        ("lora", "pilora", "taso"), (0.1, 0.2)
    )
