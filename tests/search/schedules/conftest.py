"""What the tests of schedulers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.schedules.schedules import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with no models in it; the directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    return World()
