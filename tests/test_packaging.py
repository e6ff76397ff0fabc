"""What is installed: every package of the house, with its types."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ranksweep", "search", "trainables", "spaces")


@pytest.mark.parametrize("floor", PACKAGES)
def test_a_floor_says_that_it_is_typed(floor: str) -> None:
    assert (ROOT / floor / "py.typed").is_file()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"][floor]


@pytest.mark.parametrize("floor", PACKAGES)
def test_data_beside_the_code_is_installed_with_it(floor: str) -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    kept = {
        file for each in setuptools["package-data"][floor] for file in (ROOT / floor).glob(each)
    }
    assert set((ROOT / floor).rglob("*.yaml")) <= kept


@pytest.mark.parametrize("floor", PACKAGES)
def test_every_room_is_a_package_that_is_found(floor: str) -> None:
    for file in (ROOT / floor).rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} would not be installed"


def test_the_command_finds_its_own_packages_whatever_the_path_has(tmp_path: Path) -> None:
    for name in ("search.py", "spaces.py", "trainables.py"):
        (tmp_path / name).write_text("raise ValueError('a module of the user')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ranksweep", "--version"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ranksweep ")


def test_the_command_is_that_of_the_package_that_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["ranksweep"].partition(":")
    assert callable(getattr(import_module(module), function))
    found = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {each.removesuffix("*") for each in found} == {*PACKAGES}
