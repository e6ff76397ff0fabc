"""lm-eval's scores of a confirmation and of the untouched base are logged, kept and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.cli.lm_eval_table import lm_eval_table
from search.cli.output import plain_text
from search.launch import confirm as confirm_stage
from search.launch.lm_eval import log_scores_of_base, scores_of_base
from search.paths import SweepPaths
from search.queries.comparison import Confirmation, compare
from search.queries.lm_eval_scores import base_scores
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import JobError
from tests.search.launch.test_confirm import Workers, confirm, switched
from tests.search.observed import TAGS, Silent, Watched
from trainables.resident.jobs import BaseJob, BaseResult, TrialJob, TrialResult
from trainables.training.lm_eval_settings import LmEvalSettings
from trainables.training.lm_eval_tasks import LmEvalTasks

ASKED = LmEvalTasks(LmEvalSettings(tasks=("piqa",)), "/elsewhere")
OTHERWISE = LmEvalTasks(LmEvalSettings(tasks=("piqa",), num_fewshot=2), "/elsewhere")
SCORED = TAGS | {"lm_eval_digest": ASKED.settings.digest}


class Scoring(Workers):
    """Workers that also score what they are asked to, unless lm-eval fails on a seed."""

    def __init__(self, fails_on: int | None = None, asked: LmEvalTasks = ASKED) -> None:
        super().__init__()
        self._fails_on, self._asked = fails_on, asked

    def run(self, job: TrialJob, **more: Any) -> TrialResult:
        found = super().run(job, **more)
        assert job.lm_eval == self._asked
        told: dict[str, Any] = {"lm_eval": {"piqa/acc": job.seed / 4, "piqa/acc_stderr": 0.01}}
        if job.seed == self._fails_on:
            told = {"lm_eval_error": "lm-eval: no memory"}
        return TrialResult(**{**vars(found), **told})


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm_stage, "lm_eval_tasks", lambda config: ASKED)


def begun(
    database: str, folder: Path, workers: Workers
) -> tuple[Tracker, str, list[Confirmation], list[str]]:
    """A sweep whose confirmations are done: where it is logged, what they are, what was said."""
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)
    watched = Watched(folder, tracker, sweep)
    rows = confirm(watched, workers, tracker, sweep)
    assert watched.close() == 0
    return tracker, sweep, rows, watched.silent.said


def test_every_seed_has_its_scores_in_mlflow_and_in_the_comparison(
    database: str, tmp_path: Path
) -> None:
    tracker, sweep, rows, _ = begun(database, tmp_path, Scoring())
    logged = {run.seed: run.metrics["lm_eval/piqa/acc"] for run in tracker.children(sweep)}
    assert logged == {1: 0.25, 2: 0.5}
    for run in tracker.children(sweep):
        tags = tracker.run(run.run_id).data.tags
        assert json.loads(tags["ranksweep.lm_eval"]) == ASKED.settings.of_scores
        assert run.lm_eval_digest == ASKED.settings.digest
    assert rows[0].lm_eval == {"piqa/acc": (0.25, 0.5), "piqa/acc_stderr": (0.01, 0.01)}
    assert compare(database, "scored").rows == rows


def test_scores_that_the_journal_or_mlflow_has_are_shown_again(
    database: str, tmp_path: Path
) -> None:
    tracker, sweep, rows, _ = begun(database, tmp_path, Scoring())
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        resumed, nobody = Watched(folder, tracker, sweep), Scoring()
        assert confirm(resumed, nobody, tracker, sweep) == rows
        assert nobody.trained == []
        assert resumed.close() == 0


@pytest.mark.parametrize("known_to", ["journal", "MLflow"])
def test_scores_by_other_settings_are_left_out_and_counted(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_to: str
) -> None:
    tracker, sweep, rows, _ = begun(database, tmp_path, Scoring(fails_on=2))
    tracker.log(sweep, tags={"lm_eval_digest": OTHERWISE.settings.digest})
    monkeypatch.setattr(confirm_stage, "lm_eval_tasks", lambda config: OTHERWISE)
    folder = tmp_path if known_to == "journal" else tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    resumed = Watched(folder, tracker, sweep)
    again = confirm(resumed, Scoring(asked=OTHERWISE), tracker, sweep)
    assert resumed.close() == 0
    assert again == [replace(row, lm_eval={}) for row in rows]
    assert resumed.silent.said[0].startswith(
        "4 confirmations of before have no scores of lm-eval (2 have some by other settings, "
    )


def test_the_mean_is_over_scores_by_the_settings_of_the_last_launch_alone(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)
    monkeypatch.setattr(confirm_stage, "lm_eval_tasks", lambda config: OTHERWISE)
    watched = Watched(tmp_path, tracker, sweep)

    class OneSeed(Scoring):
        def run(self, job: TrialJob, **more: Any) -> TrialResult:
            if job.seed == 2:
                raise JobError("out of memory")
            return super().run(job, **more)

    confirm(watched, OneSeed(asked=OTHERWISE), tracker, sweep)
    monkeypatch.setattr(confirm_stage, "lm_eval_tasks", lambda config: ASKED)
    rows = confirm(watched, Scoring(), tracker, sweep)
    assert watched.close() == 0
    assert [row.lm_eval["piqa/acc"] for row in rows] == [(0.5,)] * 2
    assert compare(database, "scored").rows == rows
    assert "2 of 4 confirmations have scores of lm-eval by other settings" in caplog.text


def test_what_a_score_does_not_depend_on_tells_no_settings_apart() -> None:
    one = LmEvalSettings(tasks=("piqa",), batch_size=1, allow_code=True)
    assert one.digest == ASKED.settings.digest != OTHERWISE.settings.digest


def test_where_lm_eval_fails_the_confirmation_s_own_numbers_stay(
    database: str, tmp_path: Path
) -> None:
    tracker, sweep, rows, said = begun(database, tmp_path, Scoring(fails_on=2))
    assert [row.values for row in rows] == [(0.125, 0.25)] * 2
    assert rows[0].lm_eval["piqa/acc"] == (0.25,)
    assert "confirmation of trial 0, seed 2: lm-eval: no memory" in said
    runs = {(run.number, run.seed): run for run in tracker.children(sweep)}
    assert {run.status for run in runs.values()} == {"complete"}
    failed = tracker.run(runs[0, 2].run_id).data
    assert failed.tags["ranksweep.error"] == "lm-eval: no memory"
    assert failed.metrics["test_accuracy"] == 0.25


class Measuring:
    """Workers that measure the base, or fail to."""

    def __init__(self, answer: Callable[[], dict[str, float]]) -> None:
        self.asked = 0
        self._answer = answer

    def run(self, job: BaseJob) -> BaseResult:
        assert job.lm_eval.settings.tasks
        self.asked += 1
        return BaseResult(self._answer())


def of_base(
    workers: Measuring, tracker: Tracker, sweep: str, folder: Path, asked: LmEvalTasks = ASKED
) -> tuple[dict[str, float], list[str]]:
    view, paths = Silent(), SweepPaths(folder, "scored")
    paths.make_sweep()
    some_workers: Any = workers
    some_view: Any = view
    scores = scores_of_base(asked, workers=some_workers, paths=paths, view=some_view)
    log_scores_of_base(asked, scores, tracker=tracker, sweep_run_id=sweep, view=some_view)
    return dict(scores), view.said


def scores_in_mlflow(tracker: Tracker, sweep: str, asked: LmEvalTasks) -> dict[str, float]:
    recorded = RecordedRuns(tracker.uri)
    return base_scores(recorded, tracker.experiment_id, sweep, asked.settings.digest)


def test_the_untouched_base_is_measured_once_a_sweep_and_is_one_run(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)
    workers = Measuring(lambda: {"piqa/acc": 0.5, "piqa/acc_stderr": 0.1})
    for _ in range(2):
        scores, _ = of_base(workers, tracker, sweep, tmp_path)
        assert scores == {"piqa/acc": 0.5, "piqa/acc_stderr": 0.1}
    assert workers.asked == 1
    (run,) = tracker.children(sweep)
    assert (run.kind, run.status) == ("base", "complete")
    assert run.metrics == {"lm_eval/piqa/acc": 0.5, "lm_eval/piqa/acc_stderr": 0.1}
    assert scores_in_mlflow(tracker, sweep, ASKED) == scores


def test_scores_of_the_base_by_other_settings_are_another_run(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)
    first = Measuring(lambda: {"piqa/acc": 0.5, "piqa/acc_norm": 0.75})
    of_base(first, tracker, sweep, tmp_path)
    of_base(Measuring(lambda: {"piqa/acc": 0.25}), tracker, sweep, tmp_path, OTHERWISE)
    assert len(tracker.children(sweep)) == 2
    assert scores_in_mlflow(tracker, sweep, ASKED) == {"piqa/acc": 0.5, "piqa/acc_norm": 0.75}
    assert scores_in_mlflow(tracker, sweep, OTHERWISE) == {"piqa/acc": 0.25}


def test_scores_of_the_base_that_mlflow_did_not_take_are_logged_by_the_next_launch(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)
    gone, _ = switched(database, "scored", is_away=True)
    gone.patience = 0.0
    workers = Measuring(lambda: {"piqa/acc": 0.5})
    scores, said = of_base(workers, gone, sweep, tmp_path)
    assert scores == {"piqa/acc": 0.5}
    assert "are not logged" in said[-1]
    of_base(workers, tracker, sweep, tmp_path)
    assert workers.asked == 1
    assert scores_in_mlflow(tracker, sweep, ASKED) == {"piqa/acc": 0.5}


def test_a_base_that_cannot_be_measured_is_said_and_tried_again(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "scored")
    sweep = tracker.start_sweep("scored", {}, SCORED)

    def fail() -> dict[str, float]:
        raise JobError("lm-eval: no memory")

    workers = Measuring(fail)
    for _ in range(2):
        scores, said = of_base(workers, tracker, sweep, tmp_path)
        assert scores == {}
        assert said[-1] == "the untouched base has no scores of lm-eval: lm-eval: no memory"
    assert workers.asked == 2
    assert tracker.children(sweep) == []


def test_the_table_sets_the_choices_beside_the_base(database: str, tmp_path: Path) -> None:
    _, _, rows, _ = begun(database, tmp_path, Scoring())
    (table,) = lm_eval_table(rows, {"piqa/acc": 0.5, "boolq/acc": 0.25})
    lines = [" ".join(line.split()) for line in plain_text([table]).splitlines()]
    assert any("boolq/acc │ 0.2500 │ - │ -" in line for line in lines)
    assert any("piqa/acc │ 0.5000 │ 0.3750 ± 0.1768 │ 0.3750 ± 0.1768" in line for line in lines)
    assert not any("stderr" in line for line in lines)
    assert lm_eval_table([], {}) == []
