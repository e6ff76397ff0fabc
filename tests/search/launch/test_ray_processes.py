"""What a launch starts of Ray: in process groups of their own, and watched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from ray._private import services

from search.launch.ray_processes import LOOK_S, groups_of_their_own, watched

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with groups_of_their_own():
        process = services.ConsolePopen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_a_signal_to_the_group_of_a_launch_does_not_reach_its_ray(
    sleeper: subprocess.Popen[bytes],
) -> None:
    assert os.getpgid(sleeper.pid) == sleeper.pid != os.getpgrp()
    other = services.ConsolePopen((sys.executable, "-c", ""))
    assert other.wait() == 0


def test_a_death_of_what_ray_cannot_be_without_is_heard_once(
    sleeper: subprocess.Popen[bytes],
) -> None:
    processes = [("log_monitor", SimpleNamespace(returncode=1))]
    node = SimpleNamespace(
        dead_processes=lambda: [each for each in processes if each[1].returncode is not None]
    )
    heard: list[str] = []
    came = threading.Event()

    def hear(what: str) -> None:
        heard.append(what)
        came.set()

    with watched(hear, node):
        assert not came.wait(5 * LOOK_S), "Ray goes on without its log monitor"
        sleeper.kill()
        sleeper.wait()
        processes.append(("raylet", sleeper))  # type: ignore[arg-type]
        assert came.wait(30)
    assert heard == ["raylet, killed by signal 9"]
