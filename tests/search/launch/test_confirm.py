"""What a confirmation measures is used, kept and logged once, whatever becomes of MLflow."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from search.launch.confirm import confirm_best
from search.queries.comparison import Confirmation, compare
from search.study.left_open import end_what_was_left_open
from search.tracking.journal import Journal
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import JobError
from spaces.plan import Plan
from spaces.planner import Planner
from spaces.target import BaseSize
from tests.mlflow_server import MlflowServer
from tests.search.observed import TAGS, Switched, Watched, choice_of, held, plan_of
from tests.search.toy_search import TARGETS, toy_study
from trainables.resident.jobs import TrialJob, TrialResult
from trainables.tasks.measured_rows import ClassRows, class_rows, read_measured_rows
from trainables.training.settings import TrainSettings

CHOSEN: list[dict[str, Any]] = [
    {"number": number, "arm": choice.method, "method": choice.method, "choice": choice.as_dict()}
    | {"trainable_params": plan_of(choice.as_dict()).trainable_params}
    for number, choice in ((0, choice_of(0)), (1, choice_of(1)))
]
PLANS = [plan_of(row["choice"]) for row in CHOSEN]
SEEDS = (1, 2)


class Workers:
    """Workers that measure at once what a seed stands for; `before` hears the count of each job.

    A seed's own rows are taken for their class, the others are not; both choices are alike. What a
    job leaves as its weights says which it was.
    """

    def __init__(self, before: Callable[[int], None] = lambda count: None) -> None:
        self.trained: list[int] = []
        self.left: dict[str, bytes] = {}
        self._before = before
        self._one_at_a_time = threading.Lock()

    def run(self, job: TrialJob, **_: Any) -> TrialResult:
        with self._one_at_a_time:
            self.trained.append(job.seed)
            self._before(len(self.trained))
            if job.keep_weights:
                self.left[str(job.job_id)] = str(job.job_id).encode()
        metrics = {"accuracy": job.seed / 8, "dev_accuracy": job.seed / 4, "head_params": 34}
        labels, rows = np.zeros(8, np.int64), np.arange(8) >= job.seed
        logits = np.eye(2)[rows.astype(int)]
        said = class_rows("accuracy", "these", labels, logits).to_bytes()
        return TrialResult(metrics, 34, ready_at=0.0, first_step_at=0.0, test_rows=said)

    def collect(self, job_id: str) -> bytes | None:
        return self.left.pop(job_id, None)


def confirm(
    watched: Watched,
    workers: Workers,
    tracker: Tracker,
    sweep: str,
    keep: str = "none",
    plans: Sequence[Plan] = PLANS,
) -> list[Confirmation]:
    config: Any = SimpleNamespace(
        name=tracker.experiment,
        confirm=SimpleNamespace(seeds=len(SEEDS), lm_eval=None),
        published=None,
        train=TrainSettings(epochs=2),
        task=SimpleNamespace(metric="accuracy"),
        search=SimpleNamespace(mode="max"),
        cluster=SimpleNamespace(groups=1),
        tracking=SimpleNamespace(keep_weights=keep),
    )
    some_workers: Any = workers
    silent: Any = watched.silent
    return confirm_best(
        CHOSEN,
        config=config,
        plans=plans,
        workers=some_workers,
        relay=watched.relay,
        tracker=tracker,
        sweep_run_id=sweep,
        view=silent,
        kept=watched.confirmed,
    )


def switched(uri: str, experiment: str, is_away: bool = False) -> tuple[Tracker, Switched]:
    tracker = Tracker(uri, experiment)
    client = Switched(tracker.client, is_away)
    tracker.client = client
    return tracker, client


@pytest.fixture
def faultless(database: str, tmp_path: Path) -> dict[str, Any]:
    """What MLflow holds of the confirmations where it is never away."""
    (tmp_path / "faultless").mkdir()
    tracker = Tracker(database, "faultless")
    sweep = tracker.start_sweep("faultless", {}, TAGS)
    watched = Watched(tmp_path / "faultless", tracker, sweep)
    rows = confirm(watched, Workers(), tracker, sweep)
    assert watched.close() == 0
    assert compare(database, "faultless").rows == rows
    return without_names(held(database, tracker, sweep, tmp_path))


def without_names(runs: dict[str, Any]) -> dict[str, Any]:
    for run in runs.values():
        run["tags"].pop("ranksweep.sweep")
    return runs


def test_a_confirmation_says_what_it_is_and_what_it_measured(faultless: dict[str, Any]) -> None:
    assert set(faultless) == {f"{n} seed {seed}" for n in (0, 1) for seed in SEEDS}
    run = faultless["1 seed 2"]
    tags = run["tags"]
    assert (tags["ranksweep.kind"], tags["ranksweep.status"]) == ("confirm", "complete")
    assert tags["ranksweep.arm"] == tags["ranksweep.method"] == "taso"
    assert tags["ranksweep.plan_digest"] == plan_of(CHOSEN[1]["choice"]).digest
    assert run["metrics"]["test_accuracy"] == [(2, "0.25")]
    assert run["tags"]["ranksweep.epoch"] == "2"
    assert "accuracy" not in run["metrics"], "the dev metric of a trial"
    plan = {"choice.yaml", "plan.json", "plan.safetensors", "run.json"}
    assert set(run["files"]) == {*plan, "test_rows.safetensors"}
    rows = read_measured_rows(run["files"]["test_rows.safetensors"])
    assert isinstance(rows, ClassRows)
    assert rows.predictions.tolist() == [0, 0, *[1] * 6]
    assert run["metrics"]["dev_accuracy"] == [(2, "0.5")]


def test_a_server_that_is_away_all_the_while_costs_no_value(
    database: str, tmp_path: Path, faultless: dict[str, Any]
) -> None:
    tracker = Tracker(database, "away")
    sweep = tracker.start_sweep("away", {}, TAGS)
    gone, _ = switched(database, "away", is_away=True)
    watched = Watched(tmp_path, gone, sweep, pause_s=0.01)
    rows = confirm(watched, Workers(), gone, sweep)
    assert [row.values for row in rows] == [(0.125, 0.25)] * 2
    assert watched.close(patience_s=0.2) == 4 * 3
    assert held(database, tracker, sweep, tmp_path) == {}

    resumed, nobody = Watched(tmp_path, tracker, sweep), Workers()
    assert confirm(resumed, nobody, tracker, sweep) == rows
    assert nobody.trained == [], "the journal has them"
    assert resumed.close() == 0
    assert without_names(held(database, tracker, sweep, tmp_path)) == faultless
    assert compare(database, "away").rows == rows


def test_a_server_that_goes_away_in_the_middle_is_told_all_when_it_answers(
    database: str, tmp_path: Path, faultless: dict[str, Any]
) -> None:
    tracker, client = switched(database, "middle")
    sweep = tracker.start_sweep("middle", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep, pause_s=0.01)

    def go_away(count: int) -> None:
        client.is_away = count > 1

    rows = confirm(watched, Workers(go_away), tracker, sweep)
    assert [row.values for row in rows] == [(0.125, 0.25)] * 2
    client.is_away = False
    assert watched.close() == 0
    assert without_names(held(database, tracker, sweep, tmp_path)) == faultless


def test_what_mlflow_alone_has_is_not_trained_again(database: str, tmp_path: Path) -> None:
    tracker = Tracker(database, "known")
    sweep = tracker.start_sweep("known", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    rows = confirm(watched, Workers(), tracker, sweep)
    assert watched.close() == 0

    (tmp_path / "elsewhere").mkdir()
    resumed, nobody = Watched(tmp_path / "elsewhere", tracker, sweep), Workers()
    assert confirm(resumed, nobody, tracker, sweep) == rows
    assert nobody.trained == []
    assert resumed.close() == 0


def test_one_that_failed_or_was_cut_short_is_done_again_as_a_run_of_its_own(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "again")
    sweep = tracker.start_sweep("again", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)

    def fail(count: int) -> None:
        if count <= 3:
            raise JobError("worker died")

    rows = confirm(watched, Workers(fail), tracker, sweep)
    assert [len(row.values) for row in rows] == [1]
    cut_short = watched.journal.new_confirmation()
    body = {"kind": "confirm", "number": 0, "choice": CHOSEN[0]["choice"], "metrics": {}}
    tags = {"seed": 1, "arm": "lora", "plan_digest": "unknown"}
    watched.journal.start(cut_short, body | {"tags": tags}, 1000, (0, 1))
    assert watched.close() == 0

    journal = Journal(tmp_path / "journal.db")
    end_what_was_left_open(journal, toy_study(tmp_path), "accuracy")
    journal.close()
    resumed, workers = Watched(tmp_path, tracker, sweep), Workers()
    rows = confirm(resumed, workers, tracker, sweep)
    assert [row.values for row in rows] == [(0.125, 0.25)] * 2
    assert len(workers.trained) == 3
    assert resumed.close() == 0
    states = sorted(str(run.status) for run in tracker.children(sweep))
    assert states == ["complete"] * 4 + ["failed"] * 3 + ["interrupted"]


def weights_in_mlflow(watched: Watched, tracker: Tracker, sweep: str) -> dict[tuple[int, int], str]:
    """(Number, seed) -> the weights of the runs that have some, when all have been told."""
    assert watched.relay.close() == 0
    runs = watched.journal.confirmation_run_ids(sweep)
    assert watched.confirmed.log(tracker, {-number: runs[number] for number in runs}) is None
    watched.journal.close()
    recorded, found = RecordedRuns(tracker.uri), {}
    for run in tracker.children(sweep):
        if "weights.safetensors" in recorded.files(run.run_id):
            assert run.number is not None
            assert run.seed is not None
            weights = recorded.artifact(run.run_id, "weights.safetensors")
            found[run.number, run.seed] = weights.decode()
    return found


WHOLE = Planner(TARGETS, None, BaseSize(params=999, bias_params=9)).plan({"method": "full"})


@pytest.mark.parametrize(
    ("keep", "kept_of_whole"), [("none", None), ("best", {1}), ("all", {1, 2})]
)
def test_each_confirmation_keeps_its_weights_and_a_whole_base_once(
    database: str, tmp_path: Path, keep: str, kept_of_whole: set[int] | None
) -> None:
    """The second choice trains the base itself."""
    tracker = Tracker(database, "weights")
    sweep = tracker.start_sweep("weights", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    plans = [plan_of(CHOSEN[0]["choice"]), WHOLE]
    confirm(watched, Workers(), tracker, sweep, keep, plans)
    wanted = set() if kept_of_whole is None else {(0, 1), (0, 2), *((1, s) for s in kept_of_whole)}
    assert weights_in_mlflow(watched, tracker, sweep) == {
        (number, seed): f"confirm-{number}-seed-{seed}" for number, seed in wanted
    }
    assert not list((tmp_path / "confirmed").glob("*"))


OLD_JOURNAL = """
CREATE TABLE records (id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER NOT NULL,
    kind TEXT NOT NULL, at_ms INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX records_of_trial ON records (number, kind);
CREATE TABLE runs (number INTEGER PRIMARY KEY, token TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, run_id TEXT, sweep_run_id TEXT);
INSERT INTO runs (number, token, epoch, ended) VALUES (0, 'abc', 1, 1);
INSERT INTO records (number, kind, at_ms, body) VALUES
    (0, 'start', 1000, '{"choice": {"method": "lora", "learning_rate": 0.0001},
        "tags": {"arm": "lora", "plan_digest": "unknown"}, "metrics": {}}'),
    (0, 'end', 1001, '{"state": "complete", "error": null, "metrics": {}, "epoch": 1}');
"""


def test_a_journal_of_before_confirmations_goes_on(database: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "journal.db") as old:
        old.executescript(OLD_JOURNAL)
    tracker = Tracker(database, "old")
    sweep = tracker.start_sweep("old", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    assert watched.journal.confirmed() == {}
    rows = confirm(watched, Workers(), tracker, sweep)
    assert watched.close() == 0
    kept = held(database, tracker, sweep, tmp_path)
    assert set(kept) == {"0", *(f"{n} seed {seed}" for n in (0, 1) for seed in SEEDS)}
    journal = Journal(tmp_path / "journal.db")
    assert list(journal.run_ids(sweep)) == [0], "of trials alone"
    assert journal.confirmed() == {
        (row.number, seed): value
        for row in rows
        for seed, value in zip(SEEDS, row.values, strict=True)
    }


@pytest.mark.server
def test_a_real_server_that_is_killed_in_the_middle_is_told_all(
    server: MlflowServer, tmp_path: Path, faultless: dict[str, Any]
) -> None:
    tracker = Tracker(server.uri, "movie")
    sweep = tracker.start_sweep("movie", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep, pause_s=0.2)

    def kill(count: int) -> None:
        if count == 2:
            server.stop()

    rows = confirm(watched, Workers(kill), tracker, sweep)
    assert [row.values for row in rows] == [(0.125, 0.25)] * 2
    assert watched.journal.waiting > 0
    server.start()
    assert watched.close() == 0
    assert without_names(held(server.uri, tracker, sweep, tmp_path)) == faultless
    assert compare(server.uri, "movie").rows == rows
