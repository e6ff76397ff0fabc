"""What befalls a trial is kept until MLflow has been told, and MLflow is told each thing once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from search.tracking.journal import Journal, JournalError
from search.tracking.tracker import Tracker
from tests.search.observed import TAGS, Switched, Watched, held

ROOT = Path(__file__).parents[3]
WRITES = ("create_run", "log_batch", "log_artifacts", "set_terminated", "set_tag", "delete_run")
READS = ("search_runs", "get_run")


class Unreliable:
    """MLflow's client, whose call number `at` fails: before it does anything, or after it all."""

    def __init__(self, client: Any, at: int, lost: bool) -> None:
        self._client, self._at, self._lost = client, at, lost
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in (*WRITES, *READS):
            return method

        def call(*arguments: Any, **keys: Any) -> Any:
            self.calls += 1
            fails = self.calls == self._at
            if fails and not self._lost:
                raise MlflowException("connection refused")
            answer = method(*arguments, **keys)
            if fails:
                raise MlflowException("the answer was lost")
            return answer

        return call


def tracked(
    uri: str,
    folder: Path,
    experiment: str,
    at: int = 0,
    lost: bool = False,
    paced: bool = False,
    trials: tuple[int, ...] = (0, 1, 2),
) -> tuple[int, dict[str, Any]]:
    """Observe trials while call `at` fails; how many calls there were, and what MLflow holds."""
    tracker = Tracker(uri, experiment)
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    client = tracker.client = Unreliable(tracker.client, at, lost)
    folder = folder / experiment
    folder.mkdir()
    watched = Watched(folder, tracker, sweep, pause_s=0.01)
    for number in trials:
        for step in watched.steps(number):
            step()
            while paced and watched.journal.waiting:
                time.sleep(0.002)
    assert watched.close() == 0
    return client.calls, held(uri, Tracker(uri, experiment), sweep, folder)


@pytest.mark.parametrize("paced", [False, True], ids=["in one go", "step by step"])
@pytest.mark.parametrize("lost", [False, True], ids=["call fails", "answer lost"])
def test_whatever_call_fails_mlflow_holds_what_it_would_have_held(
    database: str, tmp_path: Path, lost: bool, paced: bool
) -> None:
    two = (0, 2)
    calls, faultless = tracked(database, tmp_path, "faultless", paced=paced, trials=two)
    assert [trial["status"] for trial in faultless.values()] == ["FAILED", "FINISHED"]
    for at in range(1, calls + 1):
        _, after = tracked(database, tmp_path, f"fault-{at}", at, lost, paced, two)
        assert after == faultless, f"call {at} of {calls}"


def test_what_mlflow_is_told_is_what_was_observed(database: str, tmp_path: Path) -> None:
    _, trials = tracked(database, tmp_path, "observed")

    complete, pruned, failed = trials["0"], trials["1"], trials["2"]
    assert complete["metrics"]["accuracy"] == [(1, "0.001"), (2, "0.002")]
    assert not {"epoch", "head_params"} & complete["metrics"].keys(), "they are no curves"
    assert (complete["tags"]["ranksweep.epoch"], complete["tags"]["ranksweep.head_params"]) == (
        "2",
        "34",
    )
    assert pruned["metrics"]["dev_loss"] == [(1, "nan")]
    assert failed["tags"]["ranksweep.error"] == "RuntimeError: out of memory"
    assert [t["tags"]["ranksweep.status"] for t in trials.values()] == [
        "failed",
        "pruned",
        "complete",
    ]
    for trial in trials.values():
        assert set(trial["files"]) == {
            "choice.yaml",
            "plan.json",
            "plan.safetensors",
            "run.json",
        }
        params = json.loads(trial["files"]["plan.json"])["trainable_params"]
        assert trial["metrics"]["trainable_params"] == [(0, repr(float(params)))]
        assert trial["ended"]


def test_a_trial_that_ends_while_mlflow_is_away_is_written_in_five_calls(
    database: str, tmp_path: Path
) -> None:
    tracker = Tracker(database, "brief")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    client = tracker.client = Unreliable(tracker.client, 1, lost=False)
    watched = Watched(tmp_path, tracker, sweep, pause_s=0.3)
    for step in watched.steps(0):
        step()
    assert watched.close() == 0
    failed, looked_whether_mlflow_answers, looked_for_the_run, looked_for_doubles = 1, 1, 1, 1
    assert client.calls <= 5 + failed + looked_whether_mlflow_answers + (
        looked_for_the_run + looked_for_doubles
    )


def test_a_run_that_a_hung_server_creates_late_is_taken_away(database: str, tmp_path: Path) -> None:
    tracker = Tracker(database, "late")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    first, *rest = watched.steps(0)
    client = tracker.client
    unreliable = Unreliable(client, 1, lost=False)
    watched.relay.tracker.client = unreliable
    first()
    while watched.journal.waiting:
        time.sleep(0.01)
    token = watched.journal.run_of(0).token
    tags = {"mlflow.parentRunId": sweep, "ranksweep.token": token, "ranksweep.number": "0"}
    client.create_run(tracker.experiment_id, tags=tags)
    for step in rest:
        step()
    assert watched.close() == 0
    assert held(database, tracker, sweep, tmp_path).keys() == {"0"}


def test_what_a_launch_leaves_is_told_by_the_next(database: str, tmp_path: Path) -> None:
    tracker = Tracker(database, "left")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    gone = Tracker(database, "left")
    gone.client = Switched(None, is_away=True)
    watched = Watched(tmp_path, gone, sweep, pause_s=0.01)
    for number in range(3):
        for step in watched.steps(number):
            step()
    assert watched.close(patience_s=0.2) == 4 + 3 + 2
    assert held(database, tracker, sweep, tmp_path) == {}
    said = [text for text in watched.silent.said if text.startswith("tracking: ")]
    assert len(said) == 1, "an outage is said once"

    again = Watched(tmp_path, tracker, sweep)
    assert again.close() == 0
    _, expected = tracked(database, tmp_path, "expected")
    assert held(database, tracker, sweep, tmp_path) == expected


def test_a_run_that_mlflow_refuses_holds_up_no_other(database: str, tmp_path: Path) -> None:
    tracker = Tracker(database, "refused")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    watched = Watched(tmp_path, tracker, sweep)
    first, *rest = watched.steps(0)
    first()
    while watched.journal.waiting:
        time.sleep(0.01)
    tracker.client.delete_run(watched.silent.run_ids[0])
    for step in [*rest, *watched.steps(1)]:
        step()
    assert watched.close(patience_s=5) == 3, "what was refused is kept"
    assert held(database, tracker, sweep, tmp_path).keys() == {"1"}
    assert "trial 0 is not logged" in watched.silent.said[0]


# The journal itself -----------------------------------------------------------------------------


def test_a_journal_is_private_and_gives_back_what_it_took_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.start(7, {"a": 1}, 10)
    journal.start(8, {"b": 1}, 11)
    journal.epoch(7, 1, {"m": float("nan")}, 12)
    journal.end(7, {"state": "complete"}, 13)

    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in tmp_path.iterdir())
    again = Journal(tmp_path / "journal.db")
    assert again.waiting == 4
    records = again.next_of(())
    assert [(r.number, r.kind, r.at_ms) for r in records] == [
        (7, "start", 10),
        (7, "epoch", 12),
        (7, "end", 13),
    ]
    assert records[2].body == {"state": "complete", "epoch": 1}
    again.put_aside(records)
    assert [(r.number, r.kind) for r in again.next_of(())] == [(8, "start")]
    assert again.next_of({8}) == []
    assert again.left_open() == {8: 0}


def test_what_befell_a_trial_twice_is_taken_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for at_ms in (1, 2):
        journal.start(0, {}, at_ms)
        journal.epoch(0, 1, {}, at_ms)
        journal.end(0, {}, at_ms)
    journal.epoch(0, 2, {}, 3)
    assert [(r.kind, r.at_ms) for r in journal.next_of(())] == [
        ("start", 1),
        ("epoch", 1),
        ("end", 1),
    ]
    assert journal.waiting == 3


def test_beyond_its_bound_a_journal_gives_up_epochs_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db", most_records=20)
    for number in range(30):
        journal.start(number, {}, 0)
        for epoch in range(1, 11):
            journal.epoch(number, epoch, {}, 0)
        journal.end(number, {}, 0)

    told = []
    while records := journal.next_of(()):
        kinds = [record.kind for record in records]
        assert (kinds[0], kinds[-1]) == ("start", "end")
        assert records[-2].body["epoch"] == 10, "the newest epoch is the trial's value"
        told.append(kinds.count("epoch"))
        journal.put_aside(records)
    assert len(told) == 30
    assert told[0] == 10
    assert told[3:] == [1] * 27
    assert journal.gave_up_epochs
    assert journal.waiting == 0


def test_a_journal_that_cannot_be_read_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_text("this is text, not SQLite" * 100)
    with pytest.raises(JournalError, match=r"journal.db: the journal cannot be used .*; check"):
        Journal(tmp_path / "journal.db")


def test_an_append_that_fails_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.start(0, {}, 0)
    other = sqlite3.connect(tmp_path / "journal.db")
    pages = other.execute("PRAGMA page_count").fetchone()[0]
    with journal.driver as database:
        database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="full"):
        journal.epoch(0, 1, {"m": "x" * 100_000}, 0)
    assert journal.waiting == 1
    assert journal.left_open() == {0: 0}
    with journal.driver as database:
        database.execute("PRAGMA max_page_count = 100000")
    journal.epoch(0, 1, {"m": "x" * 100_000}, 0)
    assert journal.left_open() == {0: 1}


KILLED = """
import itertools, sys
from pathlib import Path
from search.tracking.tracker import Tracker
from tests.search.observed import Watched
uri, folder, sweep = sys.argv[1:]
watched = Watched(Path(folder), Tracker(uri, "killed"), sweep)
for number in itertools.count():
    for done, step in enumerate(watched.steps(number), start=1):
        step()
        print(number, done, flush=True)
"""


@pytest.mark.group
@pytest.mark.parametrize("steps", [1, 9, 40])
def test_a_driver_killed_at_any_moment_leaves_nothing_untold(
    database: str, tmp_path: Path, steps: int
) -> None:
    tracker = Tracker(database, "killed")
    sweep = tracker.start_sweep("sweep", {}, TAGS)
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, database, str(tmp_path), sweep],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert writer.stdout is not None
    seen = [writer.stdout.readline() for _ in range(steps)]
    os.kill(writer.pid, signal.SIGKILL)
    seen += writer.stdout.readlines()
    writer.wait(timeout=20)
    whole = [line.split() for line in seen if line.endswith("\n")]  # the kill may cut the last
    done = {int(number): int(step) for number, step in whole}

    watched = Watched(tmp_path, tracker, sweep)
    assert watched.close() == 0
    trials = held(database, tracker, sweep, tmp_path)
    assert set(range(len(trials))) == {int(number) for number in trials}
    assert len(trials) >= len(done)
    for number, step in done.items():
        trial = trials[str(number)]
        epochs = len(trial["metrics"].get("accuracy", []))
        assert epochs >= min(step - 1, 2 - number % 3)
        if step == 4 - number % 3:
            assert trial["status"] != "RUNNING"
            assert epochs == 2 - number % 3


def test_a_confirmation_has_a_number_that_none_before_it_had(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    number = journal.new_confirmation()
    journal.start(number, {}, 0, (0, 1))
    journal.forget(number)
    journal.close()
    again = Journal(tmp_path / "journal.db")
    assert again.new_confirmation() < number < 0
    again.close()
