"""Folders of any name: what a launch keeps lies in the folder itself, and is found there again."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from search.paths import SweepPaths, nearest_there, sqlite_uri
from search.redaction import redacted
from search.store.profiles import ProfileStore
from search.study.study import open_study
from search.tracking.runs import RecordedRuns
from search.tracking.tracker import Tracker

WILD = '50% of 100%25 a?b #1 {SCHEMA_VERSION} Größe 日本 :x it\'s "so" [1]* \\n a+b=c;d&e@f'
NAMES = ["two words", "50% off", "100%25", "a?b", "a#b", "Größe 日本", "{x}", "~x", WILD]


@pytest.fixture(params=NAMES)
def folder(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    empty_database: Path,
) -> Path:
    """The working directory, with a database of MLflow's in all but one, where it makes its own."""
    folder: Path = tmp_path / request.param
    folder.mkdir()
    monkeypatch.chdir(folder)
    if request.param != WILD:
        SweepPaths().root.mkdir()
        (SweepPaths().root / "mlflow.db").write_bytes(empty_database.read_bytes())
    return folder


def test_what_may_not_be_looked_into_counts_as_not_there(locked: Path) -> None:
    assert nearest_there(locked / "below" / "it") == locked
    assert nearest_there(Path("/tmp") / ("x" * 300) / "below") == Path("/tmp")


def test_a_sweep_is_kept_in_the_folder_itself_and_found_again(folder: Path) -> None:
    relative, paths = SweepPaths(), SweepPaths(name="s").absolute()
    paths.make_sweep()
    study = {"objectives": ["accuracy"], "mode": "max", "sampler": "random", "seed": 0}
    open_study(paths.study_uri, "s", **study).set_user_attr("a", 1)  # type: ignore[arg-type]
    ProfileStore(relative.store_uri).objects.put("a/b", b"x")
    tracker = Tracker(relative.tracking_uri, "e")
    run_id = tracker.start_sweep("s", {"a": 1})

    assert open_study(paths.study_uri, "s", **study).user_attrs["a"] == 1  # type: ignore[arg-type]
    assert paths.study_db.is_file()
    for uri in (relative.store_uri, paths.store_uri):
        objects = ProfileStore(uri).objects
        assert pickle.loads(pickle.dumps(objects)).get("a/b") == b"x"
        assert objects.list("a") == ("a/b",)
    assert (paths.root / "store" / "a" / "b").is_file()
    for uri in (tracker.uri, paths.tracking_uri, redacted(tracker.uri)):
        found = Tracker(uri, "e").find_sweep("s")
        assert found is not None
        assert found.run_id == run_id
        assert RecordedRuns(uri).artifact(run_id, "sweep.yaml") == b"a: 1\n"
    assert (paths.root / "mlartifacts" / run_id / "artifacts" / "sweep.yaml").is_file()

    assert [each.name for each in folder.iterdir()] == [".ranksweep"]
    assert [each.name for each in folder.parent.iterdir()] == [folder.name], "nothing beside it"


def test_an_address_of_an_ordinary_folder_stands_as_it_is() -> None:
    assert sqlite_uri(Path("/data/a b/ü.db")) == "sqlite:////data/a b/ü.db"
