"""The figures of a sweep hold what its runs say, by brute force."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats

from search.objective import Objective
from search.queries.sweep_record import SweepRecord
from search.reports.colours import style_of
from search.reports.panel import Absent, Panel
from search.reports.sweep.beside import beside_panel
from search.reports.sweep.choices import choices_panel
from search.reports.sweep.curves import curves_panel
from search.reports.sweep.hours import hours_panel
from search.reports.sweep.importance import importance_panel
from search.reports.sweep.over_time import over_time_panel
from search.reports.sweep.pareto import pareto_panel
from search.reports.sweep.sections import sections_of
from search.study.importance import importances
from tests.search.reports.records import long_record, record, trial

MAX = Objective("accuracy", "max")


def rows_of(panel: Panel | Absent) -> list[dict[str, Any]]:
    assert isinstance(panel, Panel), panel.why
    return [dict(zip(panel.columns, row, strict=True)) for row in panel.rows]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_front_is_what_no_other_beats(mode: Any) -> None:
    draw = random.Random(3)
    trials = [
        trial(n, "lora", draw.randint(1, 30) / 30, draw.randint(1, 40) * 100) for n in range(60)
    ]
    found = rows_of(pareto_panel(record(trials, objective=Objective("accuracy", mode))))
    sign = 1 if mode == "max" else -1
    points = {(row["trial"]): (sign * row["accuracy"], row["parameters"]) for row in found}
    unbeaten = {
        point
        for point in points.values()
        if not any(
            other != point and other[0] >= point[0] and other[1] <= point[1]
            for other in points.values()
        )
    }
    front = [points[row["trial"]] for row in found if row["on the front"]]
    assert sorted(front) == sorted(unbeaten), "each point of the front once"
    assert len(found) == 60


def test_seeds_give_a_mean_and_a_student_interval() -> None:
    first = trial(0, "lora", 0.80)
    again = trial(1, "lora", 0.84, choice=first.choice, repeat="1")
    (row,) = rows_of(pareto_panel(record([first, again], {0: [0.7, 0.7]}, on_dev=0.79)))
    values = [0.80, 0.84, 0.79, 0.79]  # its trials, and its confirmations on dev
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (row["accuracy"], row["seeds"]) == (pytest.approx(np.mean(values)), 4)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_what_has_collapsed_is_on_no_front_however_small() -> None:
    trials = [trial(0, "lora", 0.8, 1000), trial(1, "taso", 0.5, 10, collapsed=True)]
    found = rows_of(pareto_panel(record(trials)))
    assert {row["arm"] for row in found if row["on the front"]} == {"lora"}


def test_the_comparison_is_that_of_test_else_the_best_of_each_method_on_dev() -> None:
    trials = [trial(0, "lora", 0.80), trial(1, "taso", 0.85, 90), trial(2, "taso", 0.81)]
    on_dev = beside_panel(record(trials))
    assert [(row["arm"], row["minus LoRA"]) for row in rows_of(on_dev)] == [
        ("taso", pytest.approx(0.05)),
        ("lora", 0.0),
    ]
    assert "Nothing is confirmed on test" in on_dev.says  # type: ignore[union-attr]
    confirmed = {0: [0.70, 0.71, 0.72], 1: [0.80, 0.81, 0.82]}
    sweep = record(trials, confirmed)
    (taso, lora) = rows_of(beside_panel(sweep))
    assert taso["minus LoRA"] == pytest.approx(0.10)
    assert sweep.comparison is not None
    assert (taso["low"], taso["high"]) == sweep.comparison.rows[0].adjusted
    assert (taso["verdict"], lora["verdict"], lora["minus LoRA"]) == ("better", None, 0.0)


def test_the_best_so_far_rises_as_complete_trials_end() -> None:
    trials = [
        trial(0, "lora", 0.7, minutes=(0, 5)),
        trial(1, "taso", 0.9, minutes=(1, 2), status="pruned"),
        trial(2, "taso", 0.6, minutes=(2, 3)),
        trial(3, "lora", 0.8, minutes=(3, 9)),
        trial(4, "lora", None, minutes=(4, 6), status="failed"),
        trial(5, "lora", 0.95, minutes=(4, 7), warm_from=0),
    ]
    found = rows_of(over_time_panel(record(trials)))
    ended = sorted(trials, key=lambda run: run.ended_ms or 0)
    counted = [
        run.metrics["accuracy"] if run.status == "complete" and run.warm_from is None else -math.inf
        for run in ended
    ]
    highest = list(itertools.accumulate(counted, max))
    assert [row["trial"] for row in found] == [run.number for run in ended]
    assert [row["best so far"] if row["best so far"] is not None else -math.inf for row in found] \
        == highest  # fmt: skip
    assert found[-1]["hours"] == pytest.approx(9 / 60, abs=1e-5)


def test_hours_are_the_sums_of_what_groups_were_held_for() -> None:
    trials = [trial(n, arm, 0.8) for n, arm in enumerate(["lora", "lora", "taso"])]
    found = rows_of(hours_panel(record(trials)))
    by = {(row["for"], row["doing"]): row["group-hours"] * 3600 for row in found}
    assert by["lora", "training"] == pytest.approx(80, abs=0.05)
    assert by["taso", "measuring"] == pytest.approx(5, abs=0.05)
    # Each was held for a minute, of which 40 s trained and 5 s measured.
    assert by["lora", "start-up"] == pytest.approx(30, abs=0.05)
    # Two groups prepare for 10 s, and search and confirm for 400 s; the trials began long before
    # the last launch did, so none of that was theirs.
    assert by["before the search", "start-up"] == pytest.approx(20, abs=0.05)
    assert by["between trials", "waiting"] == pytest.approx(800, abs=0.05)
    # A group holds two workers with a GPU each.
    assert sum(row["GPU-hours"] for row in found) == pytest.approx(
        2 * sum(row["group-hours"] for row in found), abs=1e-3
    )
    assert sum(row["share"] for row in found) == pytest.approx(1, abs=1e-3)


def test_curves_say_each_trial_s_best_epoch_and_its_last() -> None:
    found = rows_of(curves_panel(record([trial(0, "lora", 0.8)])))
    assert [(row["epoch"], row["is best epoch"], row["is last"]) for row in found] == [
        (1.0, False, False),
        (2.0, True, True),
    ]


def test_a_key_that_a_method_lacks_has_a_place_of_its_own_below_all_values() -> None:
    panel = choices_panel(long_record(60))
    assert isinstance(panel, Panel)
    assert panel.brushed is not None
    (drawn,) = panel.brushed()["data"]
    axes = {axis["label"]: axis for axis in drawn["dimensions"]}
    assert {"method", "parameters", "learning rate", "threshold", "accuracy"} <= axes.keys()
    rows = rows_of(panel)
    assert axes["threshold"]["ticktext"][0] == "none"
    lacking = [row["partition.threshold"] is None for row in rows]
    own = axes["threshold"]["values"]
    having = [value for value, lacks in zip(own, lacking, strict=True) if not lacks]
    assert {value for value, lacks in zip(own, lacking, strict=True) if lacks} == {
        axes["threshold"]["tickvals"][0]
    }
    assert axes["threshold"]["tickvals"][0] < min(having)
    # Of a key over two powers of ten the axis has the logarithm.
    rates = axes["learning rate"]["values"]
    assert rates == pytest.approx(
        [math.log10(float(row["learning_rate"])) for row in rows], abs=1e-4
    )


def test_what_makes_the_difference_is_found() -> None:
    draw = random.Random(0)
    choices: list[dict[str, Any]] = [
        {"rate": 10 ** draw.uniform(-4, -2), "rank": draw.choice([1, 2, 4, 8]), "kind": "a"}
        for _ in range(60)
    ]
    values = [math.log10(each["rate"]) + 0.01 * draw.random() for each in choices]
    first, *rest = importances(choices, values, MAX)
    assert first.key == "rate"
    assert first.share > 0.8
    assert [each.key for each in rest] == ["rank"], "a key that all have alike is none"
    assert first.share + sum(each.share for each in rest) == pytest.approx(1)
    assert importances(choices[:7], values[:7], MAX) == []
    assert importances(choices, [0.5] * 60, MAX) == []
    many = importances(choices * 4, values * 4, MAX)  # beyond what a forest is grown for
    assert many[0].key == "rate"


def test_with_few_trials_nothing_is_said_of_what_mattered() -> None:
    found = importance_panel(record([trial(n, "lora", 0.8) for n in range(5)]))
    assert isinstance(found, Absent)
    assert "8 trials of a method" in found.why
    assert "there are 5" in found.why


@pytest.mark.parametrize(
    "sweep",
    [
        record([]),
        record([trial(0, "lora", None, status="running")]),
        record([trial(0, "taso", 0.5), trial(1, "joint", None, status="failed")]),
        record([trial(0, "lora", 0.8)], {0: [0.7]}),
        long_record(25),
    ],
    ids=["nothing", "running", "one", "one confirmed", "many"],
)
def test_every_figure_is_drawn_or_says_why_not(sweep: SweepRecord) -> None:
    panels = [panel for section in sections_of(sweep) for panel in section.panels]
    assert len({panel.key for panel in panels}) == len(panels) == 7
    for panel in panels:
        if isinstance(panel, Absent):
            assert panel.why
            continue
        assert panel.says.strip().endswith(".")
        read = list(csv.reader(io.StringIO(panel.as_csv())))
        assert read[0] == list(panel.columns)
        assert [["" if cell is None else str(cell) for cell in row] for row in panel.rows] == read[
            1:
        ]
        assert panel.brushed is not None
        assert panel.brushed()["data"]
        assert panel.printed().axes


def test_a_method_looks_alike_in_all_sweeps_and_arms_differ_by_more_than_colour() -> None:
    arms = ["lora", "pilora", "taso", "sensitivity", "joint", "dora", "pilora rule=hits", "full"]
    found = style_of(arms)
    assert found["taso"] == style_of(["taso"])["taso"] == style_of(["joint", "taso"])["taso"]
    assert len({style.symbol_plotly for style in found.values()}) == len(arms)
    assert len({style.colour_light for style in found.values()}) == len(arms)

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for style in found.values():  # WCAG 2.2, 1.4.11: what is not text
        assert contrast(style.colour_light, "#ffffff") >= 3
        assert contrast(style.colour_dark, "#191d23") >= 3
