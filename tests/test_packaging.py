"""What is installed: every package of the three floors, with its types."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("search", "trainables", "spaces")


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_says_that_it_is_typed(floor: str) -> None:
    assert (ROOT / floor / "py.typed").is_file()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"][floor] == ["py.typed"]


@pytest.mark.parametrize("floor", FLOORS)
def test_every_room_is_a_package_that_is_found(floor: str) -> None:
    for file in (ROOT / floor).rglob("*.py"):
        assert (file.parent / "__init__.py").is_file(), f"{file.parent} would not be installed"
