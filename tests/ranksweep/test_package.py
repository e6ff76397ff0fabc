"""`import ranksweep`: light, typed, documented, and its own whatever lies beside the notebook."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import ranksweep
from search.queries.comparison import Confirmation
from search.queries.history import Step
from search.queries.rows import BestRow

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "pandas", "numpy", "pydantic", "typer", "transformers")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code as a notebook does: the working directory comes first on the path."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False, env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )  # fmt: skip


def test_its_import_brings_nothing_heavy(tmp_path: Path) -> None:
    done = python("import sys, json, ranksweep; print(json.dumps([*sys.modules]))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not {*HEAVY} & {*json.loads(done.stdout)}


def test_it_finds_its_own_packages_beside_modules_of_the_same_names(tmp_path: Path) -> None:
    for name in ("search", "spaces", "trainables"):
        (tmp_path / f"{name}.py").write_text("raise ValueError('a module of the user')")
    done = python("import ranksweep; print(ranksweep.plan.__module__)", tmp_path)
    assert (done.returncode, done.stdout) == (0, "ranksweep.plans\n"), done.stderr


def test_a_module_of_such_a_name_that_came_first_is_told(tmp_path: Path) -> None:
    (tmp_path / "search.py").touch()
    done = python("import search, ranksweep", tmp_path)
    assert done.returncode == 1
    assert "ImportError: ranksweep: a module 'search' is imported already" in done.stderr


def test_what_it_gives_is_there_typed_and_documented() -> None:
    for name in ranksweep.__all__:
        found: Any = getattr(ranksweep, name)
        if name == "__version__":
            assert (
                found == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
            )
            continue
        assert inspect.getdoc(found), name
        if inspect.isfunction(found):
            of = inspect.signature(found)
            assert of.return_annotation is not of.empty, name
            kinds = [each.annotation for each in of.parameters.values()]
            assert of.empty not in kinds, name
    assert {*ranksweep.__all__} == {*dir(ranksweep)}
    with pytest.raises(AttributeError, match="has no attribute 'lunch'"):
        getattr(ranksweep, "lunch")  # noqa: B009


def test_the_page_shows_every_function_as_it_is() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^### (\w+)\n+```python\n(def .*?)```", page, re.M | re.S)
    functions = {name for name in ranksweep.__all__ if inspect.isfunction(getattr(ranksweep, name))}
    assert {name for name, _ in blocks} == functions
    for name, block in blocks:
        made: dict[str, Any] = {}
        exec(block, made)
        shown = inspect.signature(made[name]).parameters.values()
        wanted = inspect.signature(getattr(ranksweep, name)).parameters.values()
        assert [(each.name, each.kind, each.default) for each in shown] == [
            (each.name, each.kind, each.default) for each in wanted
        ]


def test_the_code_of_the_page_that_needs_no_training_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"<!-- runs -->\n```python\n(.*?)```", page, re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks), {})


def test_the_page_names_the_columns_of_frames_and_the_filters() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    found = [
        re.findall(r"`(\w+)`", each)
        for each in re.findall(r"^Columns: (.*?)\.$", page, re.M | re.S)
    ]
    assert found == [[each.name for each in fields(row)] for row in (BestRow, Confirmation, Step)]
    (filters,) = re.findall(r"^`Filters` takes (.*?);", page, re.M | re.S)
    assert re.findall(r"`(\w+)`", filters) == [each.name for each in fields(ranksweep.Filters)]
