"""What a sweep's run says of the sweep: its numbers, its description, its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from search.config.reading import parse_sweep
from search.config.sweep import SweepConfig
from search.launch.result import LaunchResult
from search.launch.sweep_note import summary_metrics, sweep_note
from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.comparison import OnTest, summarize

RUN = "a" * 32
VALUES = {"pilora": (0.84, 0.85, 0.87), "lora": (0.80, 0.81, 0.80)}


@pytest.fixture
def config() -> SweepConfig:
    task = {"name": "movie", "text": ["sentence"], "data": {"train": "a.csv", "test": "b.csv"}}
    return parse_sweep({"name": "mine", "base": "hub:team/tiny@" + "0" * 40, "task": task})


def best(arm: str, number: int, value: float) -> BestChoice:
    choice = {"method": arm, "learning_rate": 1.26e-3}
    return BestChoice(arm, arm, value, [value], 1, 1000 * number, number, None, choice)


@pytest.fixture
def searched() -> LaunchResult:
    return LaunchResult(
        name="mine",
        profile_key="k" * 64,
        profile_cached=True,
        tracking_uri="http://ml",
        sweep_run_id=RUN,
        states={"complete": 5, "pruned": 2},
        best=[best("pilora", 7, 0.9), best("lora", 2, 0.8)],
        seconds={"search": 60.0, "confirm": 30.0},
    )


@pytest.fixture
def confirmed(searched: LaunchResult) -> LaunchResult:
    found = [
        (vars(row), {seed: OnTest(value) for seed, value in enumerate(VALUES[row.arm])})
        for row in searched.best
    ]
    return replace(searched, confirmation=summarize(found, Objective("accuracy", "max")))


def test_before_a_confirmation_the_best_on_dev_is_what_is_told(
    config: SweepConfig, searched: LaunchResult
) -> None:
    metrics = summary_metrics(config, searched)
    assert metrics["best_accuracy"] == 0.9
    assert metrics["trainable_params"] == 7000
    assert (metrics["trials.complete"], metrics["trials.pruned"]) == (5, 2)
    assert metrics["seconds"] == 90
    assert not any(name.startswith("test_") for name in metrics)
    note = sweep_note(config, searched, "3")
    assert note.startswith("7 of 24 trials are over.")
    assert "| pilora | 0.9 | 7,000 | 1.3e-3 | 7 |" in note


def test_a_confirmation_tells_the_mean_its_interval_and_the_difference_from_lora(
    config: SweepConfig, confirmed: LaunchResult
) -> None:
    metrics = summary_metrics(config, confirmed)
    values = VALUES["pilora"]
    mean = sum(values) / 3
    low, high = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
    assert metrics["test_accuracy"] == pytest.approx(mean)
    assert metrics["test_accuracy_low"] == pytest.approx(low)
    assert metrics["test_accuracy_high"] == pytest.approx(high)
    above = metrics["test_accuracy_above_lora"]
    assert above == pytest.approx(mean - sum(VALUES["lora"]) / 3)
    assert (
        metrics["test_accuracy_above_lora_low"] < above < metrics["test_accuracy_above_lora_high"]
    )
    note = sweep_note(config, replace(confirmed, answer=("So it was.", "Pilora won.")), "3")
    assert note.startswith("So it was. Pilora won.")
    assert "| pilora | 0.8533 |" in note
    assert "ranksweep compare mine" in note


def test_a_description_links_within_the_ui_and_shows_the_first_figures(
    config: SweepConfig, searched: LaunchResult
) -> None:
    report = ["report/index.html", "report/figures/hours.png", "report/figures/pareto-front.png"]
    note = sweep_note(config, searched, "3", report)
    assert f"(#/experiments/3/runs?viewStateShareKey={RUN}&" in note
    assert f"(#/experiments/3/runs/{RUN}/artifacts/report/index.html?" in note
    place = f"get-artifact?path=report/figures/pareto-front.png&run_uuid={RUN}"
    assert f"![pareto front]({place})" in note
    assert note.count("get-artifact") == 1
