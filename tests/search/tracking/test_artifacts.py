"""An experiment whose files are elsewhere: refused before the start, found where they moved."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from search.tracking.artifacts import check_experiment
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker
from spaces.errors import ConfigError, TrackingError

FAULTS = Path(__file__).parents[3] / "docs" / "faults.md"


@pytest.fixture
def project(tmp_path: Path, database: str) -> Path:
    """A project's folder with MLflow's database."""
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "mlflow.db").rename(folder / "mlflow.db")
    return folder


def uri_in(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def test_an_experiment_of_a_server_is_refused_over_its_bare_database(project: Path) -> None:
    client = MlflowClient(tracking_uri=uri_in(project))
    client.create_experiment("movies", "mlflow-artifacts:/1")
    with pytest.raises(ConfigError, match=r"tracking.experiment: 'movies' .* behind an MLflow"):
        Tracker(uri_in(project), "movies")
    with pytest.raises(ConfigError, match="behind an MLflow server"):
        check_experiment(uri_in(project), "movies")  # as a dry run does
    check_experiment(uri_in(project), "another")
    check_experiment(f"sqlite:///{project}/new.db", "movies")
    assert not (project / "new.db").exists()
    experiment = client.get_experiment_by_name("movies")
    assert client.search_runs([experiment.experiment_id]) == []


def test_what_a_project_kept_is_read_where_it_has_moved(project: Path) -> None:
    run_id = Tracker(uri_in(project), "movies").start_sweep("s", {"a": 1})
    moved = project.rename(project.parent / "renamed")

    recorded = RecordedRuns(uri_in(moved))
    assert recorded.files(run_id) == {"sweep.yaml"}
    assert recorded.artifact(run_id, "sweep.yaml") == b"a: 1\n"


def test_a_launch_in_a_moved_project_is_refused_and_makes_nothing_in_the_old_place(
    project: Path,
) -> None:
    Tracker(uri_in(project), "movies").start_sweep("s", {"a": 1})
    moved = project.rename(project.parent / "renamed")

    with pytest.raises(ConfigError, match=rf"{project}/mlartifacts.*moved or renamed"):
        Tracker(uri_in(moved), "movies")
    assert not project.exists()
    Tracker(uri_in(moved), "other").start_sweep("s", {"a": 1})
    assert (moved / "mlartifacts").is_dir()


def test_mlflow_is_told_of_a_move_as_the_docs_say(project: Path) -> None:
    run_id = Tracker(uri_in(project), "movies").start_sweep("s", {"a": 1})
    moved = project.rename(project.parent / "renamed folder")
    (told,) = re.findall(r"```sql\n(.*?)```", FAULTS.read_text(), re.DOTALL)
    told = told.replace("file:///old/place/", f"{project.as_uri()}/")
    with closing(sqlite3.connect(moved / "mlflow.db")) as books:
        books.executescript(told.replace("file:///new/place/", f"{moved.as_uri()}/"))

    again = Tracker(uri_in(moved), "movies")
    found = again.find_sweep("s")
    assert found is not None
    assert found.run_id == run_id
    new = again.start_sweep("t", {"a": 2})
    for kept in (run_id, new):
        assert (moved / "mlartifacts" / kept / "artifacts" / "sweep.yaml").is_file()
        assert RecordedRuns(uri_in(moved)).files(kept) == {"sweep.yaml"}
    assert not project.exists()


def test_artifacts_that_are_nowhere_are_not_told_as_never_kept(project: Path) -> None:
    run_id = Tracker(uri_in(project), "movies").start_sweep("s", {"a": 1})
    moved = project.rename(project.parent / "renamed")
    shutil.rmtree(moved / "mlartifacts")

    with pytest.raises(TrackingError, match=rf"{run_id} are in {project}/mlartifacts.*moved"):
        RecordedRuns(uri_in(moved)).files(run_id)


def test_an_experiment_that_was_made_for_a_folder_to_come_is_taken(project: Path) -> None:
    place = project / "to" / "come"
    MlflowClient(tracking_uri=uri_in(project)).create_experiment("movies", place.as_uri())
    run_id = Tracker(uri_in(project), "movies").start_sweep("s", {"a": 1})
    assert (place / run_id / "artifacts" / "sweep.yaml").is_file()


def test_an_experiment_whose_folder_cannot_be_made_is_refused(project: Path) -> None:
    (project / "file").write_text("in the way")
    place = project / "file" / "artifacts"
    MlflowClient(tracking_uri=uri_in(project)).create_experiment("movies", place.as_uri())
    with pytest.raises(ConfigError, match="cannot be made"):
        Tracker(uri_in(project), "movies")
