"""A sweep starts from what the tracking server has of the same task and of the same base."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from search.study import in_time
from search.study.warm_start import (
    Earlier,
    announcement,
    earlier_choices,
    moved_into,
    remember_earlier,
)
from spaces.errors import TrackingError
from spaces.methods.registry import parse_choice
from tests.search.queries.test_best import Records
from tests.search.study.test_searcher import asked, finish
from tests.search.toy_search import searcher_over, toy_space, toy_study

TASK, BASE = "t" * 64, "b" * 64
PARENT = "mlflow.parentRunId"


class Past(Records):
    """Trials of earlier sweeps, written without the code under test."""

    def of(
        self, sweep: str, value: float, choice: dict[str, Any], *, task: str = TASK,
        base: str = BASE, **tags: Any,
    ) -> str:  # fmt: skip
        run_id = self.trial(
            value,
            100,
            task_fingerprint=task,
            base=base,
            method=choice["method"],
            choice=json.dumps(parse_choice(choice).as_dict(), sort_keys=True),
            **tags,
        )
        self.client.set_tag(run_id, PARENT, sweep)
        return run_id

    def found(self, space: Any = None, **settings: Any) -> list[Earlier]:
        defaults = {
            "task_fingerprint": TASK,
            "base_fingerprint": BASE,
            "sweep_run_id": "this",
            "at_most": 9,
        }
        return earlier_choices(self.uri, space or toy_space(), **{**defaults, **settings})


@pytest.fixture
def past(database: str) -> Past:
    return Past(database)


def lora(rank: int, learning_rate: float = 1e-3) -> dict[str, Any]:
    return {"method": "lora", "rank": rank, "learning_rate": learning_rate}


def pilora(threshold: float) -> dict[str, Any]:
    partition = {"rule": "cumulative", "threshold": threshold}
    return {"method": "pilora", "rank": 4, "partition": partition, "learning_rate": 2e-3}


def test_every_method_gives_its_best_choice_of_each_group_nearest_first(past: Past) -> None:
    past.of("s1", 0.7, lora(1))
    best_here = past.of("s2", 0.8, lora(2))
    best_pilora = past.of("s1", 0.9, pilora(0.5))
    past.of("s3", 0.5, lora(1), base="c" * 64)
    elsewhere = past.of("s4", 0.6, lora(4), base="c" * 64)
    # On another task less of another metric is better; the sweep that tried lora most counts.
    past.of("s5", 0.01, lora(2), task="u" * 64, metric="dev_loss", mode="min")
    past.of("s6", 9.0, lora(1), task="v" * 64, metric="dev_loss", mode="min")
    other_task = past.of("s6", 3.0, lora(8), task="v" * 64, metric="dev_loss", mode="min")
    past.of("s7", 1.0, lora(1), task="u" * 64, base="c" * 64)  # neither the task nor the base
    assert [(each.run_id, each.choice.method) for each in past.found()] == [
        (best_here, "lora"),
        (best_pilora, "pilora"),
        (elsewhere, "lora"),
        (other_task, "lora"),
    ]
    assert [each.run_id for each in past.found(at_most=2)] == [best_here, best_pilora]
    assert [each.run_id for each in past.found(toy_space("lora"))] == [
        best_here,
        elsewhere,
        other_task,
    ]


@pytest.mark.parametrize(
    "tags",
    [{"status": "failed"}, {"status": "pruned"}, {"status": "running"}, {"kind": "confirm"}],
)
def test_only_complete_trials_and_no_test_scores_are_looked_at(
    past: Past, tags: dict[str, str]
) -> None:
    wanted = past.of("s1", 0.7, lora(1))
    past.of("s1", 0.9, lora(2), **tags)
    assert [each.run_id for each in past.found()] == [wanted]


def test_a_sweep_is_not_its_own_past(past: Past) -> None:
    past.of("this", 0.9, lora(2))
    assert past.found() == []


def test_a_choice_that_was_repeated_is_as_good_as_its_mean(past: Past) -> None:
    past.of("s1", 0.9, lora(1))
    for repeat, value in ((1, 0.5), (2, 0.4)):
        past.of("s1", value, lora(1), repeat=str(repeat))
    steady = past.of("s1", 0.8, lora(2))
    assert [each.run_id for each in past.found()] == [steady]


def test_a_choice_is_moved_to_the_nearest_values_and_keeps_its_learning_rate() -> None:
    space = toy_space()
    moved: Any = moved_into(space, parse_choice(lora(64, 3.25e-3)))
    # alpha stays a quarter of the rank as far as the space goes, which begins at a half.
    assert moved.as_dict() == parse_choice({**lora(8, 3.25e-3), "alpha": 4.0}).as_dict()
    moved = moved_into(space, parse_choice({**pilora(0.99), "rank": 16}))
    assert (moved.rank, moved.partition.threshold, moved.learning_rate) == (8, 0.9, 2e-3)
    assert moved_into(space, parse_choice(lora(4, 1.0))).learning_rate == 1e-2
    space.params_of(moved)  # the space holds it


def test_a_learning_rate_that_was_found_with_another_alpha_is_no_start(past: Past) -> None:
    # Half of its rank, where the default space of TASO begins at the rank itself.
    older = {"method": "taso", "alpha": 0.5, "retention": 0.2, "learning_rate": 8e-3}
    past.of("s1", 0.9, older)
    found = past.of("s2", 0.7, {**older, "alpha": 16.0, "learning_rate": 1e-3})
    assert [each.run_id for each in past.found()] == [found]
    searched = toy_space("taso", taso={"alpha": [0.5, 16]})
    (start,) = past.found(searched)
    assert start.choice.as_dict()["alpha"] == 0.5
    assert start.choice.learning_rate == 8e-3


def test_what_earlier_sweeps_gave_is_trained_after_the_defaults_and_credited(
    tmp_path: Path,
) -> None:
    space = toy_space("lora")
    choice = parse_choice(lora(4, 4e-3))
    study = toy_study(tmp_path)
    earlier = remember_earlier(study, lambda: [Earlier(choice, "ab12" * 8)])
    # A resumed sweep, and another driver of the study, start from the same.
    assert remember_earlier(toy_study(tmp_path), lambda: pytest.fail("asked again")) == earlier
    searcher = searcher_over(
        study,
        space,
        trials=3,
        enqueue=[space.default_choice("lora"), choice],
        origins={json.dumps(choice.as_dict(), sort_keys=True): "ab12" * 8},
    )
    first, second = asked(searcher, "t0"), asked(searcher, "t1")
    assert [s["choice"] for s in (first, second)] == [
        space.default_choice("lora").as_dict(),
        choice.as_dict(),
    ]
    assert "warm_start_from" not in study.trials[0].user_attrs
    assert study.trials[1].user_attrs["warm_start_from"] == "ab12" * 8
    tags = searcher.tags_of(second["number"])
    assert tags.pop("features") == study.trials[1].user_attrs["features"]
    assert tags == {"seed": 0, "warm_start_from": "ab12" * 8}
    finish(searcher, "t1")
    assert searcher.counts == {"lora": 2}
    assert announcement(earlier) == "1 choice starts from earlier sweeps: lora from run ab12ab12"


def test_a_tracking_server_that_is_away_or_slow_costs_a_line_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[Earlier]:
        raise TrackingError("tracking: http://nowhere: refused; check that the server runs")

    assert remember_earlier(toy_study(tmp_path), away) == []
    assert "no choice starts from earlier sweeps: tracking: http://nowhere: refused" in caplog.text
    monkeypatch.setattr(in_time, "PATIENCE_S", 0.1)
    forever = threading.Event()
    (tmp_path / "slow").mkdir()
    assert remember_earlier(toy_study(tmp_path / "slow"), lambda: [*str(forever.wait(60))]) == []
    assert "has not answered" in caplog.text
    forever.set()
