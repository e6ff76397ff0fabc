"""A sweep whose launch is gone is told from one that runs, and its record can be closed."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from search.launch.closing import close_what_is_gone
from search.launch.sweep_lock import alone
from search.paths import SweepPaths
from search.queries.best import best, why_none
from search.queries.comparison import compare
from search.queries.profile_uses import ProfileUse, profile_uses
from search.tracking.facts import RunFacts
from search.tracking.liveness import fate, launched_here, told
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, JobError, RanksweepError
from tests.search.tracked import start_trial

TAGS = {"task": "movie", "base": "b" * 64, "metric": "accuracy"}
CHOICE = {"method": "lora", "rank": 8, "learning_rate": 2e-4}


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    paths = SweepPaths(tmp_path / "root", "films")
    paths.make_sweep()
    return paths


def begun(uri: str, tags: dict[str, str]) -> tuple[Tracker, str]:
    tracker = Tracker(uri, "movie")
    return tracker, tracker.start_sweep("films", {}, {**TAGS, **tags})


def facts(tracker: Tracker, run_id: str) -> RunFacts:
    return RunFacts.of(tracker.run(run_id))


def test_a_sweep_runs_as_long_as_its_launch_holds_the_lock(
    database: str, paths: SweepPaths
) -> None:
    tracker, sweep = begun(database, launched_here(paths))
    with alone(paths):
        assert fate(facts(tracker, sweep)) == "runs"
        assert told(facts(tracker, sweep)) == "films still runs"
    assert fate(facts(tracker, sweep)) == "gone"
    said = told(facts(tracker, sweep))
    assert said is not None
    assert said.startswith("films is interrupted (its launch is gone)")
    assert "--resume" in said
    tracker.end(sweep, "complete")
    assert told(facts(tracker, sweep)) is None


def test_of_another_machine_and_of_an_older_launch_nothing_is_known(
    database: str, paths: SweepPaths
) -> None:
    tracker, elsewhere = begun(database, {**launched_here(paths), "host": "node-17"})
    assert fate(facts(tracker, elsewhere)) == "unknown"
    assert "films runs on node-17, or its launch is gone" in str(told(facts(tracker, elsewhere)))
    _, older = begun(database, {})
    assert fate(facts(tracker, older)) == "unknown"


def test_who_reads_a_sweep_whose_launch_is_gone_is_told(
    database: str, paths: SweepPaths, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, sweep = begun(database, {**launched_here(paths), "profile_key": "k"})
    run_id = start_trial(tracker, sweep, 0, CHOICE)
    tracker.end(run_id, "complete", metrics={"accuracy": 0.5, "trainable_params": 1.0})
    start_trial(tracker, sweep, 1, CHOICE)
    assert profile_uses(database) == {"k": ProfileUse(runs=2)}
    assert len(best(database, "movie")) == 1
    assert caplog.messages[-1].startswith("films is interrupted (its launch is gone)")
    said = len(caplog.messages)
    why_none(database, "movie", max_params=1)
    assert len(caplog.messages) == said, "once is enough"
    with pytest.raises(RanksweepError, match="nothing of it is confirmed on test yet"):
        compare(database, "films")
    assert caplog.messages[-1].startswith("films is interrupted (its launch is gone)")


def test_a_launch_that_could_close_its_sweep_alone_has_its_trials_closed(
    database: str, paths: SweepPaths
) -> None:
    tracker, sweep = begun(database, launched_here(paths))
    trial = start_trial(tracker, sweep, 0, CHOICE)
    tracker.end(sweep, "interrupted", error="Ctrl-C")

    assert close_what_is_gone(paths, database) == [sweep]
    assert not facts(tracker, trial).is_open
    assert tracker.run(sweep).data.tags["ranksweep.error"] == "Ctrl-C"


@pytest.mark.parametrize("folder_is_gone", [False, True])
def test_the_record_of_a_launch_that_is_gone_is_closed(
    database: str, paths: SweepPaths, folder_is_gone: bool
) -> None:
    where = launched_here(paths)
    if folder_is_gone:
        where["folder"] += "-that-was-removed/sweeps/films"
    tracker, sweep = begun(database, where)
    trial = start_trial(tracker, sweep, 0, CHOICE)

    assert close_what_is_gone(paths, database) == [sweep]
    for run_id in (sweep, trial):
        run = tracker.run(run_id)
        assert run.info.status == "KILLED"
        assert run.data.tags["ranksweep.status"] == "interrupted"
    with pytest.raises(JobError, match=r"has ended \(interrupted\) and is not running"):
        close_what_is_gone(paths, database)


def test_what_may_run_elsewhere_is_closed_only_where_it_is_known_to_be_dead(
    database: str, paths: SweepPaths, tmp_path: Path
) -> None:
    tracker, sweep = begun(database, {"host": "node-17", "folder": "/somewhere/sweeps/films"})
    with pytest.raises(ConfigError, match=r"on node-17 in /somewhere.*--gone"):
        close_what_is_gone(paths, database)
    assert facts(tracker, sweep).is_open
    assert close_what_is_gone(paths, database, gone=True) == [sweep]

    other = SweepPaths(tmp_path / "other", "films")
    other.make_sweep()
    tracker, sweep = begun(database, launched_here(other))
    with alone(other), pytest.raises(ConfigError, match=f"runs on {socket.gethostname()} in"):
        close_what_is_gone(paths, database)


@pytest.mark.parametrize("place", ["mlflow-artifacts:/1", "file:///renamed/since/mlartifacts"])
def test_a_record_is_closed_wherever_its_artifacts_are(
    place: str, database: str, paths: SweepPaths
) -> None:
    tracker, sweep = begun(database, launched_here(paths))
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as books, books:
        books.execute("UPDATE experiments SET artifact_location = ?", (place,))
    with pytest.raises(ConfigError, match="keeps its artifacts"):
        Tracker(database, "movie")
    assert close_what_is_gone(paths, database) == [sweep]
    assert facts(tracker, sweep).status == "interrupted"


def test_what_an_older_launch_has_left_is_closed_in_its_own_folder_alone(
    database: str, paths: SweepPaths, tmp_path: Path
) -> None:
    _, sweep = begun(database, {})  # it did not say where it launches
    with pytest.raises(ConfigError, match=r"launched elsewhere .*--gone"):
        close_what_is_gone(SweepPaths(tmp_path / "another", "films"), database)
    assert close_what_is_gone(paths, database) == [sweep]


def test_a_sweep_that_never_was_is_refused_and_one_that_was_cannot_be_stopped(
    database: str, paths: SweepPaths, tmp_path: Path
) -> None:
    absent: Any = SweepPaths(tmp_path / "root", "other")
    with pytest.raises(ConfigError, match=r"there is no sweep 'other' in .* nor in MLflow"):
        close_what_is_gone(absent, database)
    with pytest.raises(JobError, match="is not running"):
        close_what_is_gone(paths, database)
    absent_database = f"sqlite:///{tmp_path}/absent.db"
    with pytest.raises(JobError, match=r"is not running, and .*absent\.db has no record of it"):
        close_what_is_gone(paths, absent_database)
    with pytest.raises(ConfigError, match="there is no sweep 'other'"):
        close_what_is_gone(absent, absent_database)
    nowhere = "http://127.0.0.1:9"
    with pytest.raises(JobError, match="is not running; what MLflow has of it is unknown"):
        close_what_is_gone(paths, nowhere)
