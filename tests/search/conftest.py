"""Fixtures of the tests that start launches or an MLflow server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.mlflow_server import MlflowServer
from tests.search.launches import Launch


@pytest.fixture
def launched() -> Iterator[Callable[..., Launch]]:
    """Starts launches; what a failed test leaves of them is killed."""
    started: list[Launch] = []

    def launch(folder: Path, *arguments: str) -> Launch:
        started.append(Launch(folder, *arguments))
        return started[-1]

    yield launch
    for each in started:
        if each.process.poll() is None:
            for process in [*each.descendants(), psutil.Process(each.process.pid)]:
                process.kill()


@pytest.fixture
def locked(short_folder: Path) -> Iterator[Path]:
    """A folder that this process may not enter, be it root's or not."""
    short_folder.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(65534, 65534, 0)
    yield short_folder
    if is_root:
        os.setresuid(0, 0, 0)
    short_folder.chmod(0o700)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A real MLflow server that answers."""
    running = MlflowServer(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def tracked_to() -> Iterator[Callable[[str], None]]:
    """Has MLflow's own functions go to a URI; what that leaves in the environment is taken away."""
    import mlflow

    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(None)
