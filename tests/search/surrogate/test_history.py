"""A sweep learns from the trials that MLflow has of the same task, and of the same base."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.study import in_time
from search.study.earlier_sweeps import remember_history
from search.surrogate.history import announcement, packed, related_sweeps, unpacked
from search.surrogate.observation import Observation, RelatedSweep
from spaces.errors import TrackingError
from spaces.features import FEATURES
from tests.search.surrogate.recorded_sweeps import BASE, PLANNER, TASK, RecordedSweep, some_choices
from tests.search.toy_search import toy_study


def found(database: str, **settings: Any) -> list[RelatedSweep]:
    asked = {
        "task_fingerprint": TASK, "base_fingerprint": BASE, "sweep_run_id": None,
        "planner": PLANNER,
    }  # fmt: skip
    return related_sweeps(database, **{**asked, **settings})


def test_related_sweeps_are_found_nearest_first_with_all_that_they_tell(database: str) -> None:
    choices = some_choices(6)
    other_task = RecordedSweep(database, task="u" * 64, metric="dev_loss", mode="min")
    other_base = RecordedSweep(database, base="c" * 64)
    same, stranger = RecordedSweep(database), RecordedSweep(database, task="u" * 64, base="c" * 64)
    few = RecordedSweep(database)
    for choice in choices[:4]:
        other_task.trial(choice, 0.3, metric="dev_loss")
        other_base.trial(choice)
        stranger.trial(choice)
    values = [same.trial(choice) for choice in choices]
    again = same.trial(choices[0], repeat=1)
    few.trial(choices[0])
    for state in ("pruned", "failed"):
        same.trial(choices[1], 0.99, state)
    same.trial(choices[1], 0.99, warm_from=0)
    same.trial(choices[1], float("inf"))

    sweeps = found(database)
    assert [(each.run_id, each.relation, each.maximized) for each in sweeps] == [
        (same.run_id, "same", True),
        (other_base.run_id, "task", True),
        (other_task.run_id, "base", False),
    ]
    told = {each.value: each for each in sweeps[0].observations}
    assert sorted(told) == sorted([*values, again])
    for choice, value in zip(choices, values, strict=True):
        assert told[value].features == pytest.approx(choice.features, abs=1e-5)
        assert (told[value].method, told[value].params) == (choice.method, choice.params)
    assert told[again].repeat_of == told[values[0]].repeat_of
    assert len({each.repeat_of for each in told.values()}) == 6
    assert found(database, sweep_run_id=same.run_id)[0].run_id == other_base.run_id
    assert announcement(sweeps[:2]) == (
        f"learns from 2 earlier sweeps (11 trials): {same.run_id[:8]} of this task and base, "
        f"{other_base.run_id[:8]} of this task on another base"
    )


def test_plans_of_older_records_are_made_again_where_the_base_is_the_same(database: str) -> None:
    choices = some_choices(5)
    here, there = RecordedSweep(database), RecordedSweep(database, base="c" * 64)
    for choice in choices:
        here.trial(choice, says_features=False)
        there.trial(choice, says_features=False)
    (sweep,) = found(database)
    assert sweep.run_id == here.run_id
    wanted = {choice.features["log10_first_update"] for choice in choices}
    got = {each.features["log10_first_update"] for each in sweep.observations}
    assert sorted(got) == pytest.approx(sorted(wanted), abs=1e-5)


def test_of_a_large_history_the_bad_trials_are_taken_too(database: str) -> None:
    sweeps = [RecordedSweep(database) for _ in range(2)]
    choice = some_choices(1)[0]
    for value in range(9):
        sweeps[0].trial(choice, value / 10)
    for value in range(4):
        sweeps[1].trial(choice, value / 10)
    (larger,) = found(database, sweeps_at_most=1, trials_at_most=5)
    assert larger.run_id == sweeps[0].run_id
    assert [each.value for each in larger.observations] == [0.0, 0.2, 0.4, 0.6, 0.8]


def a_history(sweeps: int, trials: int) -> list[RelatedSweep]:
    names, rng = (*FEATURES, "of_later_versions"), np.random.default_rng(0)
    return [
        RelatedSweep(
            f"{number:032x}",
            "task",
            number % 2 == 0,
            tuple(
                Observation(
                    {name: round(float(rng.uniform(-5, 5)), 5) for name in names},
                    "lora",
                    float(rng.random()),
                    params=1000 + i,
                    repeat_of=f"{number:032x}:{i}",
                )
                for i in range(trials)
            ),
        )
        for number in range(sweeps)
    ]


def test_what_is_remembered_in_the_study_is_the_same_for_a_resumed_sweep(tmp_path: Path) -> None:
    history = a_history(8, 30)
    first = remember_history(toy_study(tmp_path), lambda: history)
    again = remember_history(toy_study(tmp_path), lambda: pytest.fail("asked again"))
    assert first == again
    assert first == history[: len(first)]
    assert len(first) == 8
    text = packed(history, 10_000)
    assert len(text) <= 10_000
    assert unpacked(text) == history[: len(unpacked(text))]
    assert 0 < len(unpacked(text)) < 8


def test_a_server_that_is_away_or_slow_costs_a_line_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[RelatedSweep]:
        raise TrackingError("tracking: http://nowhere: refused; check that the server runs")

    assert remember_history(toy_study(tmp_path), away) == []
    assert "nothing is learned from earlier sweeps: tracking: http://nowhere" in caplog.text
    monkeypatch.setattr(in_time, "PATIENCE_S", 0.1)
    (tmp_path / "slow").mkdir()
    forever = threading.Event()
    slow = remember_history(toy_study(tmp_path / "slow"), lambda: [*a_history(forever.wait(9), 1)])
    assert slow == []
    assert "has not answered" in caplog.text
    forever.set()
