"""Three schedulers run one schedule: whoever is killed or paused, each sweep is done once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.store.claims import Claims
from search.store.objects import ObjectStorage
from tests.search.launches import environment
from tests.search.schedules.schedules import done, wait_until, write_schedule

pytestmark = pytest.mark.command
LEASE_S = 5.0


class Schedulers:
    """Processes that run the schedule of a folder; what is left of them at the end is killed."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.claims = Claims(ObjectStorage(store), LEASE_S)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with (self.folder / "said.txt").open("ab") as said:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "tests.search.schedules.driver"],
                    cwd=self.folder,
                    env=environment(),
                    stdout=said,
                    stderr=said,
                )
            )

    def owner(self) -> subprocess.Popen[bytes]:
        """The process that has the one claim that is not settled."""
        (key,) = [key for key, each in self.claims.records().items() if not each.is_settled]
        holder = self.claims.holder(key)
        assert holder is not None
        (found,) = [each for each in self.processes if each.pid == holder.process]
        return found

    def states(self) -> list[str]:
        return sorted(each.state for each in self.claims.records().values())

    def add_model(self, name: str) -> None:
        with (self.folder / "models.txt").open("a") as file:
            file.write(f"{name}\n")

    def lines_of(self, file: str) -> list[str]:
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=["file", pytest.param("s3", marks=[pytest.mark.server, pytest.mark.long])])
def schedulers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Schedulers]:
    store = f"file://{tmp_path / 'store'}"
    if request.param == "s3":
        store = str(request.getfixturevalue("s3"))
    write_schedule(
        tmp_path,
        store=store,
        when={"every": 1},
        lease_seconds=LEASE_S,
        backoff=0.0,
    )
    started = Schedulers(tmp_path, store)
    yield started
    for each in started.processes:
        each.send_signal(signal.SIGCONT)
        each.kill()
        each.wait()


def test_whoever_is_killed_or_paused_each_sweep_is_done_once(schedulers: Schedulers) -> None:
    folder = schedulers.folder
    hold, wait = folder / "hold", folder / "wait"
    hold.touch()
    schedulers.add_model("a")
    for _ in range(3):
        schedulers.start()

    # Killed after the claim, before its sweep is begun.
    wait_until(lambda: len(schedulers.lines_of("held.txt")) == 1, 120)
    victim = schedulers.owner()
    victim.kill()
    victim.wait()
    hold.unlink()
    wait_until(lambda: schedulers.states() == ["done"], 60)
    assert len(schedulers.lines_of("held.txt")) == 2

    # Paused for longer than its lease: its sweep is stopped before another begins it.
    wait.touch()
    schedulers.add_model("b")
    wait_until(lambda: len(schedulers.lines_of("begun.txt")) == 2, 60)
    paused = schedulers.owner()
    paused.send_signal(signal.SIGSTOP)
    wait_until(lambda: len(schedulers.lines_of("begun.txt")) == 3, 60)
    assert schedulers.owner() is not paused
    paused.send_signal(signal.SIGCONT)
    wait_until(lambda: any("taken it over" in each for each in schedulers.lines_of("said.txt")))
    wait.unlink()
    wait_until(lambda: schedulers.states() == ["done", "done"], 60)

    # Killed in mid-sweep: its sweep ends with it, and another goes on.
    wait.touch()
    schedulers.add_model("c")
    wait_until(lambda: len(schedulers.lines_of("begun.txt")) == 4, 60)
    victim = schedulers.owner()
    child = int(schedulers.lines_of("begun.txt")[-1].split()[1])
    victim.kill()
    victim.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists())
    wait_until(lambda: len(schedulers.lines_of("begun.txt")) == 5, 60)
    wait.unlink()
    wait_until(lambda: schedulers.states() == ["done"] * 3, 60)

    assert len(done(folder)) == len(set(done(folder))) == 3
    assert not (folder / "two at once").exists()
    # SIGTERM ends what is left, which has nothing to do any more.
    left = [each for each in schedulers.processes if each.poll() is None]
    for each in left:
        os.kill(each.pid, signal.SIGTERM)
    assert [each.wait(30) for each in left] == [0] * len(left)
