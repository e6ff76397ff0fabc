"""The report at the end of a launch: in its folder and in MLflow, and never in the launch's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from search.launch.report import leave_report
from search.launch.result import LaunchResult
from search.paths import SweepPaths
from search.tracking.tracker import Tracker
from tests.search.tracked import log_epoch, start_trial

TAGS = {"task": "movie", "metric": "accuracy", "mode": "max"}


class Launched:
    """A launch that has ended with one complete trial."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.tracker = Tracker(uri, "movie")
        self.sweep = self.tracker.start_sweep("demo", {"name": "demo"}, TAGS)
        choice = {"method": "lora", "rank": 8, "learning_rate": 1e-3}
        run = start_trial(self.tracker, self.sweep, 0, choice, tags={"arm": "lora"})
        log_epoch(self.tracker, run, 1, {"accuracy": 0.8, "trainable_params": 100.0})
        self.tracker.end(run, "complete")
        self.tracker.end(self.sweep, "complete")
        self.paths = SweepPaths(folder, "demo")
        self.paths.make_sweep()
        self.said: list[str] = []

    def leave(self, hurried: bool = False, **own: Any) -> LaunchResult:
        facts = {"sweep_run_id": self.sweep, "states": {"complete": 1}, **own}
        result = LaunchResult("demo", "k", True, "uri", **facts)
        leave_report(
            result, self.paths, self.tracker, "file:///none", self.said.append, lambda: hurried
        )
        return result


@pytest.fixture
def launched(database: str, tmp_path: Path) -> Launched:
    return Launched(database, tmp_path)


def test_it_is_in_the_sweep_s_folder_and_among_the_artifacts_of_its_run(
    launched: Launched,
) -> None:
    result = launched.leave()
    assert launched.said == []
    assert result.report == str(launched.paths.report / "index.html")
    assert launched.paths.report.stat().st_mode & 0o077 == 0, "readable by its owner alone"
    client = MlflowClient(launched.tracker.uri)
    assert {each.path for each in client.list_artifacts(launched.sweep, "report")} == {
        "report/index.html",
        "report/figures",
        "report/data",
    }
    page = Path(client.download_artifacts(launched.sweep, "report/index.html"))
    assert page.read_bytes() == Path(result.report).read_bytes()


def test_there_is_none_where_nothing_is_complete_or_known_or_there_is_no_time(
    launched: Launched,
) -> None:
    assert launched.leave(states={"failed": 3}).report is None
    assert launched.leave(hurried=True).report is None
    assert launched.leave(sweep_run_id=None).report is None
    assert launched.said == []
    assert launched.leave(untold=4).report is None
    assert launched.said == ["no report yet: MLflow lacks 4 records; --resume tells them"]
    assert not launched.paths.report.exists()


def test_a_fault_is_a_line_and_ends_no_launch(launched: Launched) -> None:
    launched.paths.report.mkdir()
    (launched.paths.report / "mine.txt").write_text("")
    assert launched.leave().report is None
    (line,) = launched.said
    assert line.startswith("the report could not be written: --out: ")
    assert "holds mine.txt" in line
