"""A search through Ray Tune does what users ask of its study while it runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from search.paths import SweepPaths
from search.study.asking import enqueue_choice, stop_trial, wait_for_answer
from search.study.requests import listeners_of
from search.study.steering import BY_USER, Steering
from search.study.study import existing_study
from search.study.trial_list import trial_rows
from tests.search.toy_search import searcher_over, toy_space, toy_study
from tests.search.tuning.test_tune import Notebook, paper_group, search


@pytest.mark.ray
def test_a_running_trial_is_stopped_and_a_choice_that_is_asked_for_trained(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = toy_study(tmp_path)
    steering = Steering(study, str(tmp_path))
    searcher = searcher_over(study, toy_space("lora"), trials=2, steering=steering)
    # It runs in this process, which holds no lock of a sweep.
    monkeypatch.setattr(
        "search.study.asking.listening", lambda study: listeners_of(study.user_attrs)
    )
    answers: list[Any] = []
    began = threading.Event()

    class Tells(Notebook):
        def trial_began(self, number: int, at_ms: int) -> None:
            super().trial_began(number, at_ms)
            if number == 0:
                began.set()

    def ask() -> None:
        assert began.wait(60)
        user = existing_study(f"sqlite:///{tmp_path}/study.db", "toy")
        choice = {"method": "lora", "rank": 4, "learning_rate": 2e-3}
        elsewhere = SweepPaths(tmp_path / "elsewhere", "toy")
        answers.append(wait_for_answer(user, enqueue_choice(user, elsewhere, choice), 60))
        answers.append(wait_for_answer(user, stop_trial(user, 0), 60))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    notebook = Tells()
    # Trial 0 would take minutes; that the search ends is the proof that it was stopped.
    with paper_group({0: "slow"}) as (queue, log):
        outcome = search(searcher, queue, tmp_path, observer=notebook, max_concurrent_trials=2)
    asking.join(60)

    assert [answer.accepted for answer in answers] == [True, True]
    assert outcome.ended_by == "trials"
    assert {each.number: each.state for each in outcome.trials} == {
        0: "stopped",
        1: "complete",
        2: "complete",
    }
    assert notebook.ended[0][0] == "stopped"
    assert notebook.ended[0][2] == BY_USER
    assert ("trial-00000", 0, "cancelled") in log
    assert [row.asked for row in trial_rows(study)] == ["the sweep", "the sweep", "enqueued"]
    assert (searcher.handed, searcher.wanted) == (2, 2)
