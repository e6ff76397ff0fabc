"""Launches as separate processes with a store on a real S3 server: one computes, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.store.profiles import ProfileStore
from tests.seaweed import SECRET_KEY

pytestmark = [pytest.mark.ray, pytest.mark.server]


class Launch:
    """`ranksweep profile` in a folder of its own, with what it says on stderr, line by line."""

    def __init__(self, folder: Path, sweep: dict[str, Any], store: str) -> None:
        folder.mkdir()
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [
                sys.executable, "-um", "search.cli.main",
                "profile", "sweep.yaml", "--store", store, "--json",
            ],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self.said.append(line)
                self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: text in "".join(self.said), timeout=240)
        assert found, "".join(self.said)

    def kill(self) -> None:
        """End the launch and everything it has started, at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        out = self._process.stdout.read()
        assert self._process.wait(240) == 0, "".join(self.said)
        self._reader.join(10)
        return dict(json.loads(out))

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    started: list[Launch] = []
    yield started
    for launch in started:
        launch.end()


def test_of_three_launches_one_computes_and_two_wait(
    tiny_sweep: dict[str, Any], s3: str, tmp_path: Path, launches: list[Launch]
) -> None:
    for number in range(3):
        launches.append(Launch(tmp_path / str(number), tiny_sweep, s3))
    results = [launch.result() for launch in launches]
    assert sorted(result["profile_cached"] for result in results) == [False, True, True]
    assert len({result["profile_key"] for result in results}) == 1
    said = ["".join(launch.said) for launch in launches]
    assert sum("initial phase" in each for each in said) == 1
    assert all(SECRET_KEY not in each for each in said)
    (manifest,) = ProfileStore(s3).list()
    assert manifest["key"] == results[0]["profile_key"]


def test_a_killed_launch_is_followed_from_its_checkpoint(
    tiny_sweep: dict[str, Any], s3: str, tmp_path: Path, launches: list[Launch]
) -> None:
    profile = {**tiny_sweep["profile"], "epochs": 200, "checkpoint_every": 20}
    long = {**tiny_sweep, "profile": profile, "cluster": {"lease_seconds": 10.0}}
    for number in range(2):
        launches.append(Launch(tmp_path / str(number), long, s3))
    store = ProfileStore(s3)
    deadline = time.monotonic() + 240
    while not any("/checkpoint/manifest" in name for name in store.objects.list("profiles")):
        assert time.monotonic() < deadline, [launch.said for launch in launches]
        time.sleep(0.2)
    launches.sort(key=lambda launch: "initial phase" not in "".join(launch.said))
    owner, waiter = launches
    waiter.wait_for("is being computed by")
    owner.kill()
    result = waiter.result()
    assert result["profile_cached"] is False
    waiter.wait_for("goes on from its checkpoint: step ")
    key = result["profile_key"]
    assert store.get(key) is not None
    left = store.objects.list(f"profiles/{key}")
    assert not [name for name in left if "/checkpoint/" in name]
