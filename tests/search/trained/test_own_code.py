"""What a run in MLflow names is imported only by who wants its code to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.cli.main import main
from search.trained.its_task import task_settings
from spaces.errors import UsageError
from tests.search.trial_runs import TrialRuns
from tests.trainables.families import make
from tests.trainables.trained_examples import CHOICES, example_of
from trainables.trained.weights import Trained

SOURCE = """
from pathlib import Path

from trainables.tasks.kinds.classification import Classification

Path("it-ran").touch()


class Kind(Classification):
    pass


def metric(answers, references):
    return 1.0
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory that leaves `it-ran` there when it is imported."""
    name = f"foreign_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TrialRuns:
    return TrialRuns(tmp_path_factory.mktemp("tracking"))


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command line: exit code and the error's line."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        lines = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
        return int(left.value.code or 0), "\n".join(lines)

    return run


def test_weights_that_name_a_kind_run_no_code_unless_it_is_wanted(
    module: str, runs: TrialRuns, command: Command, tmp_path: Path
) -> None:
    made = make("bert", tmp_path / "base")
    example = example_of(made, CHOICES["lora"])
    facts = replace(example.trained.facts, task_kind=f"{module}:Kind")
    trained = Trained(facts, example.trained.weights, example.trained.head)
    run_id = runs.trial(made, CHOICES["lora"], example.plan, trained)
    tracking = ("--tracking", runs.uri)
    commands = [
        ("export", run_id, "--to", form, "--out", tmp_path / form, *tracking)
        for form in ("peft", "merged")
    ]
    for each in (*commands, ("compose", run_id, run_id, *tracking)):
        code, line = command(*each)
        assert code == 2
        assert line.startswith(f"error: {run_id}/weights.safetensors: ")
        assert f"{module}:Kind" in line
        assert "--own-code" in line
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "peft").exists()
    for each in commands:
        assert command(*each, "--own-code") == (0, "")
    assert (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "named",
    [
        {"kind": "{}:Kind"},
        {"metric": "{}:metric"},
        {"suite": [{"name": "one"}, {"name": "two", "kind": "{}:Kind"}]},
        {"suite": [{"name": "one", "metric": "{}:metric"}]},
    ],
)
def test_a_sweep_that_names_a_kind_or_a_metric_runs_no_code_unless_it_is_wanted(
    module: str, named: dict[str, Any], tmp_path: Path
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return [filled(each) for each in value] if isinstance(value, list) else value.format(module)

    data = {"train": "train.jsonl", "dev": "dev.jsonl"}
    task = {"name": "t", "kind": "classification", "text": ["text"], "data": data} | filled(named)
    run: Any = SimpleNamespace(run_id="a-run", sweep=lambda: {"task": task})
    with pytest.raises(UsageError, match=rf"^a-run: .*{module}:.*--own-code"):
        task_settings(run, own_code=False)
    assert not (tmp_path / "it-ran").exists()
    if "suite" not in named:
        task_settings(run, own_code=True)
        assert (tmp_path / "it-ran").exists()
