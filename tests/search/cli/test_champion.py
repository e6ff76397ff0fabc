"""The commands promote, champion, history and sweeps, on a real MLflow database."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from search.cli.main import main
from search.paths import SweepPaths
from search.tracking.liveness import lock_of
from search.trained import promotion
from tests.search.trained.promotions import Launches, no_model
from tests.trainables.families import make
from tests.trainables.trained_examples import CHOICES, example_of

GOOD = {1: 0.90, 2: 0.91, 3: 0.90}
BAD = {1: 0.70, 2: 0.71, 3: 0.70}
Command = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    made = make("bert", tmp_path_factory.mktemp("bert"))
    return Launches("", made, example_of(made, CHOICES["pilora"]))


@pytest.fixture
def launches(
    bert: Launches, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Launches:
    """In a directory of its own; the model itself is not made, which takes a second."""

    monkeypatch.setattr(promotion, "mlflow_model", no_model(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return replace(bert, uri=database)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command with --json: its exit code, its document, what it said on stderr."""

    def run(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--json"])
        told = capsys.readouterr()
        return int(left.value.code or 0), json.loads(told.out) if told.out else None, told.err

    return run


def test_promoting_ends_with_whether_it_is_champion_now(
    launches: Launches, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = launches.choice(BAD, name="first"), launches.choice(BAD, name="second")
    assert command("promote", first.trial)[:1] == (0,)
    code, told, _ = command("promote", second.trial)
    assert (code, told["promoted"], told["is_champion"]) == (1, False, False)
    assert command("promote", "--sweep", "first")[0] == 0  # already
    code, told, _ = command("promote", "--sweep", "second", "--even-if-not-better")
    assert (code, told["version"], told["before"]) == (0, 2, 1)
    with pytest.raises(SystemExit):
        main(["champion", "tiny-bert"])
    shown = capsys.readouterr().out
    for word in ("tiny-bert-base, version 2", second.trial, "even if not better", "0.7033"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("promote",), "RUN_ID: give"),
        (("promote", "a", "--sweep", "b"), "RUN_ID: give"),
        (("history", "tiny-bert", "--top", "0"), "--top"),
        (("sweeps", "list", "--state", "gon"), "did you mean 'gone'"),
        (("sweeps", "remove", "../x"), "NAME: no sweep"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(
    launches: Launches, command: Command, arguments: tuple[str, ...], words: str
) -> None:
    code, document, err = command(*arguments)
    assert code in (1, 2)
    assert document is None
    assert words in err
    assert err.count("\n") == 1


def test_the_history_of_a_task_marks_its_champions(launches: Launches, command: Command) -> None:
    launches.choice(BAD, name="monday", dev=0.8)
    launches.choice(BAD, name="tuesday", dev=0.7)
    launches.choice(GOOD, name="wednesday", dev=0.9)
    for name in ("monday", "wednesday"):
        assert command("promote", "--sweep", name)[0] == 0
    _, steps, _ = command("history", "tiny-bert")
    assert [step["sweep"] for step in steps] == ["monday", "tuesday", "wednesday"]
    assert [step["is_best"] for step in steps] == [True, False, True]
    assert [step["champion"] for step in steps] == [1, None, 2]
    assert [step["reigns"] for step in steps] == [False, False, True]
    assert steps[2]["test"] == pytest.approx(sum(GOOD.values()) / 3)
    _, steps, _ = command("history", "tiny-bert", "--top", "1", "--base", "base")
    assert [step["sweep"] for step in steps] == ["wednesday"]
    assert "on path:" in command("history", "tiny-bert", "--base", "nothing")[2]
    assert "did you mean 'tiny-bert'" in command("champion", "tiny-ber")[2]


def test_what_came_to_one_place_is_told_as_one_base(
    launches: Launches, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient(tracking_uri=launches.uri)
    for step, values in (("step-1", BAD), ("step-2", GOOD)):
        choice = launches.choice(values, name=step)
        client.set_tag(choice.sweep, "ranksweep.base_name", "runs")
        for run in (choice.trial, *choice.confirmations):
            client.set_tag(run, "ranksweep.base_uri", f"path:/runs/{step}")
            client.set_tag(run, "ranksweep.base", step.ljust(64, "0"))
        assert command("promote", "--sweep", step)[0] == 0
    _, (who,), _ = command("champion", "tiny-bert", "--base", "runs")
    assert (who["model"], who["version"], who["before"]) == ("tiny-bert-runs", 2, 1)
    _, steps, _ = command("history", "tiny-bert", "--base", "runs")
    assert [(step["base_name"], step["champion"]) for step in steps] == [("runs", 1), ("runs", 2)]
    with pytest.raises(SystemExit):
        main(["history", "tiny-bert"])
    shown = capsys.readouterr().out
    assert shown.count("runs, accuracy") == 1
    assert "on step-1" in shown


def test_sweeps_are_listed_from_mlflow_and_from_the_folders(
    launches: Launches, command: Command
) -> None:
    choice = launches.choice(GOOD, name="recorded")
    client = MlflowClient(tracking_uri=launches.uri)
    client.set_tag(choice.sweep, "ranksweep.scheduled_by", "nightly")
    for name in ("recorded", "alone", "begun"):
        SweepPaths(name=name).make_sweep()
    with lock_of(SweepPaths(name="begun")):
        _, found, _ = command("sweeps", "list")
    by_name = {each["name"]: each for each in found}
    assert {name: each["state"] for name, each in by_name.items()} == {
        "recorded": "complete", "alone": "unrecorded", "begun": "running",
    }  # fmt: skip
    told = by_name["recorded"]
    assert (told["trials"], told["value"], told["confirmed"]) == (1, 0.8, 3)
    assert (told["scheduled_by"], told["best_run"]) == ("nightly", choice.trial)
    assert told["folder"].endswith("recorded")
    assert command("sweeps", "show", "recorded")[1] == told
    assert [each["name"] for each in command("sweeps", "list", "--task", "tiny-bert")[1]] == [
        "recorded"
    ]
    assert command("sweeps", "list", "--state", "failed")[1] == []


def test_a_sweep_that_runs_or_is_a_champions_is_not_removed(
    launches: Launches, command: Command
) -> None:
    launches.choice(GOOD, name="champions")
    command("promote", "--sweep", "champions")
    code, _, err = command("sweeps", "remove", "champions", "--records")
    assert code == 2
    assert "champion of tiny-bert-base" in err
    running = launches.choice({}, name="running")
    MlflowClient(tracking_uri=launches.uri).set_tag(running.sweep, "ranksweep.status", "running")
    code, _, err = command("sweeps", "remove", "running", "--records")
    assert code == 2
    assert "ranksweep stop running" in err
    SweepPaths(name="held").make_sweep()
    with lock_of(SweepPaths(name="held")):
        assert command("sweeps", "remove", "held")[0] == 2
    assert SweepPaths(name="held").sweep.is_dir()


def test_a_removed_sweep_leaves_its_folder_and_where_wanted_its_runs(
    launches: Launches, command: Command
) -> None:
    choice = launches.choice(GOOD, name="old")
    SweepPaths(name="old").make_sweep()
    _, told, _ = command("sweeps", "remove", "old")
    assert not SweepPaths(name="old").sweep.exists()
    assert told == {"name": "old", "folder": str(SweepPaths(name="old").absolute().sweep),
                    "runs": []}  # fmt: skip
    assert "--records" in command("sweeps", "remove", "old")[2]
    _, told, _ = command("sweeps", "remove", "old", "--records")
    assert set(told["runs"]) == {choice.sweep, choice.trial, *choice.confirmations}
    assert command("sweeps", "list")[1] == []


def test_without_any_database_there_are_no_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command("sweeps", "list")[:2] == (0, [])
    assert not list(tmp_path.iterdir())
