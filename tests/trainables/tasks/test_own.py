"""A metric or a kind of task of the user's own, found by its import path."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from spaces.errors import ConfigError, UsageError
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import check_metric, kind_of, mode_of, usual_metric
from trainables.tasks.own import own_code, own_modules, own_object, refuse_own_code

SOURCE = """
from trainables.tasks.kinds.classification import Classification


def worst(answers, references):
    return min(float(a == b) for a, b in zip(answers, references))


worst.mode = "min"


def plain(answers, references):
    return 1.0


def of_one(answers):
    return 1.0


number = 3


class Shouted(Classification):
    metrics = ("f1", "accuracy")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory, another for each test."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_kind_is_made_of_its_class(module: str) -> None:
    kind = kind_of(f"{module}:Shouted")
    assert isinstance(kind, Kind)
    assert kind is kind_of(f"{module}:Shouted")
    assert usual_metric(f"{module}:Shouted") == "f1"


def test_a_metric_is_a_function_that_may_say_that_less_is_better(module: str) -> None:
    check_metric(f"{module}:worst", "classification")
    assert mode_of(f"{module}:worst") == "min"
    assert mode_of(f"{module}:plain") == "max"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere_at_all:metric", "there is no module 'nowhere_at_all'"),
        ("{module}:wurst", "has no 'wurst'; did you mean 'worst'"),
        ("{module}:", "is no import path; write my_module:my_name"),
        ("{module}:number", "is no function"),
        ("{module}:of_one", "does not take (answers, references)"),
        ("search.paths:metric", "is a package of ranksweep"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(module: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^task.metric: ") as caught:
        check_metric(name.format(module=module), "classification")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_kind_is_refused_in_one_line(module: str) -> None:
    with pytest.raises(ConfigError, match=r"^task.kind: .*:number is no kind of task"):
        kind_of(f"{module}:number")


def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_broken.py").write_text("import no_such_package_there\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"own_broken cannot be imported \(ModuleNotFoundError"):
        check_metric("own_broken:metric", "classification")


def test_running_text_has_no_answers_to_judge(module: str) -> None:
    with pytest.raises(ConfigError, match="judges answers, and causal has none; use loss or"):
        check_metric(f"{module}:worst", "causal")


def test_values_of_rows_are_compared_by_row() -> None:
    from trainables.tasks.measured_rows import RowStatistics, read_measured_rows
    from trainables.tasks.row_metrics import weighted

    values = np.array([0.0, 1.0, 4.0])
    rows = RowStatistics("my_module:mine", "these", weighted(values, np.ones(3)))
    again = read_measured_rows(rows.to_bytes())
    assert again.on(np.array([[1.0, 1, 1], [0, 1, 2]])).tolist() == [5 / 3, 3.0]
    assert not again.takes_long


def test_the_code_of_a_name_is_the_digest_of_its_file(module: str, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / f"{module}.py").read_bytes()).hexdigest()
    assert own_code(metric=f"{module}:worst", kind="causal") == {"metric_code": digest}


def test_code_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ModuleType("own_typed_in")
    vars(typed)["metric"] = max
    monkeypatch.setitem(sys.modules, "own_typed_in", typed)
    with pytest.raises(ConfigError, match=r"^task.metric: the code of own_typed_in is in no file"):
        own_code(metric="own_typed_in:metric")


def test_a_module_that_was_imported_before_goes_along_once_and_an_installed_one_does_not(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "own_installed.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.syspath_prepend(str(tmp_path))
    imported = importlib.import_module(module)
    for name in (module, "own_installed", "statistics"):
        attribute = "fmean" if name == "statistics" else "worst"
        own_object(f"{name}:{attribute}", "task.metric")
    check_metric(f"{module}:plain", "classification")
    names = [each.__name__ for each in own_modules()]
    assert own_modules().count(imported) == 1
    assert "own_installed" not in names
    assert "statistics" not in names


def test_what_a_run_names_is_refused_by_its_name_alone(tmp_path: Path) -> None:
    refuse_own_code(["accuracy", None, 3, ["a:b"]], "run")
    with pytest.raises(UsageError, match=r"^run: .*'nowhere:metric'.*--own-code") as caught:
        refuse_own_code(["accuracy", "nowhere:metric"], "run")
    assert "\n" not in str(caught.value)
