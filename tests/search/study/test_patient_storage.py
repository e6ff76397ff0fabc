"""A study's database that goes away for a while: nothing is lost, doubled or left open."""

from __future__ import annotations

import ast
import inspect
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage, get_storage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from search.study.patient_storage import PatientStorage, patiently
from search.study.private_optuna import STORAGE_CALLS as CALLS
from spaces.errors import JobError

GONE = OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))


def storage_on(folder: Path, timeout: float = 5.0) -> PatientStorage:
    engine = {"connect_args": {"timeout": timeout}}
    return PatientStorage(f"sqlite:///{folder}/study.db", engine_kwargs=engine)


def study_on(folder: Path, timeout: float = 5.0) -> optuna.Study:
    storage = storage_on(folder, timeout)
    return optuna.create_study(storage=storage, study_name="one", load_if_exists=True)


def three_trials(study: optuna.Study) -> list[tuple[Any, ...]]:
    """Asks, reports, marks and tells three trials; returns what the study then holds."""
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("number", number)
        trial.report(number / 10, 1)
        study.tell(trial, number / 5)
    return [
        (t.state, t.value, t.intermediate_values, t.user_attrs, sorted(t.params))
        for t in study.get_trials()
    ]


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_every_call_of_optunas_cache_that_reads_or_writes_waits(tmp_path: Path) -> None:
    tree = ast.parse(inspect.getsource(type(get_storage(storage_on(tmp_path)))))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_backend"
    }
    without_database = {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}
    assert asked - without_database == set(CALLS)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take a second to create."""
    folder = tmp_path_factory.mktemp("empty")
    RDBStorage(f"sqlite:///{folder}/study.db")
    return folder / "study.db"


@pytest.fixture(scope="module")
def whole(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """What a study holds whose database was never away."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(empty, folder)
    return three_trials(study_on(folder))


# A trial or study whose creation was done and not answered has a number that nobody knows: it stays
# open, and the next launch settles it.
CREATES = ("create_new_study", "_create_new_trial")
WRITES = (
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_state_values",
    "_get_trials",
)


@pytest.mark.parametrize(
    ("call", "lost"),
    [*((c, "request") for c in (*CREATES, *WRITES)), *((w, "answer") for w in WRITES)],
)
def test_a_call_that_fails_three_times_is_done_once(
    call: str,
    lost: str,
    empty: Path,
    whole: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pauses: None,
) -> None:
    shutil.copy(empty, tmp_path)
    original = getattr(RDBStorage, call)
    failures: list[int] = []

    def failing(self: RDBStorage, *arguments: Any, **named: Any) -> Any:
        if len(failures) % 4 < 3:
            failures.append(1)
            if lost == "answer":
                original(self, *arguments, **named)
            raise GONE
        failures.append(0)
        return original(self, *arguments, **named)

    monkeypatch.setattr(PatientStorage, call, patiently(failing))
    study = study_on(tmp_path)
    assert three_trials(study) == whole
    assert len(failures) >= 4, "the call was never made"
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_a_locked_file_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = study_on(tmp_path, timeout=0.05)
    other = sqlite3.connect(tmp_path / "study.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(1.5, lambda: other.execute("ROLLBACK"))
    release.start()
    three_trials(study)
    release.join()
    other.close()
    said = [each.getMessage() for each in caplog.records if each.name.startswith("search.")]
    assert said == [
        "the study's database does not answer (database is locked); waiting",
        "the study's database answers again",
    ]


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study_on(tmp_path)
    with closing(sqlite3.connect(tmp_path / "study.db")) as reader:
        pages = [reader.execute("PRAGMA page_count").fetchone()[0]]
    engine = {"poolclass": NullPool}  # a connection for each transaction, which takes the limit
    storage = PatientStorage(f"sqlite:///{tmp_path}/study.db", engine_kwargs=engine)

    def limited(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages[-1]}")  # then the disk is full

    event.listen(storage.engine, "connect", limited)
    waits: list[float] = []

    def make_room_at_the_third(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) % 3 == 0:
            pages.append(pages[-1] + 10)

    monkeypatch.setattr(time, "sleep", make_room_at_the_third)
    study = optuna.load_study(storage=storage, study_name="one")
    for number in range(20):
        trial = study.ask()
        trial.set_user_attr("text", "x" * 2000)
        study.tell(trial, number)
    assert len(waits) >= 3, "the disk was never full"
    assert [t.value for t in study.get_trials()] == list(range(20))


def test_patience_ends_in_one_line_and_later_calls_fail_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    study = study_on(tmp_path)
    trial = study.ask()
    calls: list[int] = []

    def gone(self: RDBStorage, *arguments: Any, **named: Any) -> None:
        calls.append(1)
        raise GONE

    monkeypatch.setattr(PatientStorage, "set_trial_user_attr", patiently(gone))
    monkeypatch.setattr(PatientStorage, "impatient", lambda _: len(calls) == 3)
    with pytest.raises(JobError, match=r"server closed .*--resume") as told:
        trial.set_user_attr("a", 1)
    assert "\n" not in str(told.value)
    assert len(calls) == 3
    with pytest.raises(JobError, match="has not answered"):
        study.ask()
    assert len(calls) == 3


def test_what_the_database_refuses_is_not_asked_again(tmp_path: Path) -> None:
    study = study_on(tmp_path)
    with pytest.raises(KeyError):
        storage_on(tmp_path).get_trial(99)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.set_user_attr("late", 1)
