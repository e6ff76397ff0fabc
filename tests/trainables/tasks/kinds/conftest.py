"""The fixture that runs a claim about kinds for every example of one."""

from __future__ import annotations

import pytest

from tests.trainables.tasks.kinds.examples import EXAMPLES, MadeKind, make_kind


@pytest.fixture(scope="session", params=EXAMPLES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeKind:
    """A tiny task of each kind; a test that asks for it runs for every one."""
    return make_kind(request.param, tmp_path_factory.mktemp("kind"))
