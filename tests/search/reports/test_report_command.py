"""`ranksweep report` as it is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.cli.main import main
from search.tracking.tracker import Tracker
from tests.search.tracked import log_epoch, start_trial


@pytest.fixture
def tracked(database: str) -> str:
    """An MLflow that has a sweep of one trial."""
    tracker = Tracker(database, "movie")
    tags = {"task": "movie", "metric": "accuracy", "mode": "max", "profile_key": "a" * 64}
    sweep = tracker.start_sweep("demo", {"name": "demo"}, tags)
    choice = {"method": "lora", "rank": 8, "learning_rate": 1e-3}
    run = start_trial(tracker, sweep, 0, choice, tags={"arm": "lora"})
    log_epoch(tracker, run, 1, {"accuracy": 0.8, "trainable_params": 100.0})
    tracker.end(run, "complete")
    tracker.end(sweep, "complete")
    return database


def given(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_json_lists_what_was_written_and_what_was_not(
    tracked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, store = tmp_path / "new" / "out", f"file://{tmp_path}/store"
    asked = ("report", "demo", "--out", out, "--tracking", tracked, "--store", store)
    assert given(*asked, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["answer"]) == 3
    listed = {each["key"] for each in told["figures"]} | {each["key"] for each in told["absent"]}
    assert len(listed) == len(told["figures"]) + len(told["absent"])
    assert {"pareto-front", "hours", "row-importance", "dominant-overlap"} <= listed
    for each in told["figures"]:
        assert (out / each["png"]).is_file()
        assert (out / each["csv"]).is_file()
    assert [each["key"] for each in told["absent"] if "8 trials" in each["why"]] == ["importance"]
    (note,) = told["notes"]
    assert note == f"its profile {'a' * 12} is not in {store}; --store names another"
    assert given(*asked) == 0  # again, in its place
    assert f"wrote {out}/index.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["demmo"], 2, "SWEEP: MLflow has no sweep of the name or run id 'demmo'; did you mean"),
        (["x' OR 1=1 --"], 2, "cannot name a sweep"),
        ([], 2, "SWEEP, --task: neither is given; name a sweep, or with --task a task"),
        (["demo", "--task", "movie"], 2, "SWEEP, --task: both are given"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_leaves_nothing(
    tracked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, told: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert given("report", *arguments, "--out", out, "--tracking", tracked) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not out.exists()


def test_a_folder_with_other_files_is_left_as_it_is(
    tracked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert given("report", "demo", "--out", tmp_path, "--tracking", tracked) == 2
    assert "--out: " in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()
