"""Schedules in a folder, with models that cost nothing to look at and sweeps that are scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from search.config.sweep import SweepConfig
from search.schedules.identity import Fingerprints
from search.schedules.notify import Kind
from search.schedules.schedule import Schedule
from search.schedules.scheduler import Scheduler, Seams
from search.schedules.sight import Due
from search.schedules.trigger import Look, Sighting, Trigger
from search.store.claims import ClaimRecord, Claims
from search.store.objects import ObjectStorage

SWEEP = {
    "base": "hub:house/base",
    "task": {
        "name": "films",
        "data": {"train": "train.csv", "dev": "dev.csv"},
        "text": ["sentence"],
    },
}
# Says that it has begun, and ends as a file of its name in the folder says; without one it is done.
SCRIPT = """
import fcntl, json, os, pathlib, signal, sys, time
name = sys.argv[1]
alone = open("alone", "w")
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    pathlib.Path("two at once").touch()
with open("begun.txt", "a") as file:
    file.write(f"{name} {os.getpid()}\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
how = pathlib.Path("how.json")
said = json.loads(how.read_text()) if how.is_file() else {}
while pathlib.Path("wait").exists():
    time.sleep(0.02)
if said.get("error"):
    print("error: " + said["error"], file=sys.stderr)
if said.get("code"):
    sys.exit(said["code"])
with open("done.txt", "a") as file:
    file.write(f"{name}\\n")
best = {"method": "lora", "value": 0.75, "trainable_params": 8, "run_id": "r"}
print(json.dumps({"name": name, "best": [best], "sweep_run_id": "s"}))
"""


def write_schedule(folder: Path, content: dict[str, Any] | None = None, **keys: Any) -> Path:
    """A schedule and its sweep, of this content, in a folder; its store is there too."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.csv").exists():
        (folder / "train.csv").write_text("rows")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content or SWEEP))
    written = {
        "name": "new-films",
        "sweep": "sweep.yaml",
        "store": f"file://{folder / 'store'}",
        "tracking": f"sqlite:///{folder / 'mlflow.db'}",
        **keys,
    }
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


def script(_schedule: Schedule, due: Due) -> list[str]:
    """A sweep that is a script."""
    return [sys.executable, "-I", "-c", SCRIPT, due.sweep]


@dataclass
class Place:
    """A trigger that sees what a test puts there."""

    name: str = "place"
    found: list[Sighting] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    error: Exception | None = None

    def put(self, subject: str, at: str, base: str | None = None) -> None:
        self.found.append(Sighting(self.name, subject, base or f"hub:house/{subject}", at))

    def look(self, memory: ObjectStorage) -> Look:
        if self.error is not None:
            raise self.error
        return Look(tuple(self.found), tuple(self.waiting))


@dataclass
class World:
    """What schedulers of a test see and tell, and their clocks."""

    places: list[Place] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)
    """Base -> what it holds, where that is not its name."""
    said: list[str] = field(default_factory=list)
    told: list[tuple[Kind, str]] = field(default_factory=list)
    now: datetime = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
    seconds: float = 0.0
    closed: bool = False
    """Whether what was to be told has been waited for."""
    command: Callable[[Schedule, Due], Sequence[str]] = script

    def tell(self, kind: Kind, text: str, facts: Mapping[str, Any]) -> None:
        self.told.append((kind, text))

    def close(self) -> None:
        self.closed = True

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds

    def seams(self, **others: Any) -> Seams:
        def triggers(_schedule: Schedule) -> list[Trigger]:
            return list(self.places)

        seams = Seams(
            build=triggers,
            teller_of=lambda _schedule: self,
            command=self.command,
            fingerprints=lambda: Fingerprints(self.base, self.task),
            now=lambda: self.now,
            monotonic=lambda: self.seconds,
        )
        return replace(seams, **others)

    def base(self, uri: str) -> str:
        return self.content.get(uri, uri).encode().hex()

    def task(self, config: SweepConfig, _base: str) -> str:
        return Path(config.task.data.train or "").read_bytes().hex()

    def scheduler(self, path: Path, **others: Any) -> Scheduler:
        return Scheduler(path, self.said.append, seams=self.seams(**others))

    def kinds(self) -> list[Kind]:
        return [kind for kind, _ in self.told]


def settle(scheduler: Scheduler, ticks: int = 20) -> None:
    """Let a scheduler do what it can do now, and wait for its sweeps."""
    for _ in range(ticks):
        scheduler.tick()
        if not scheduler.runs:
            return
        assert scheduler.join(30.0)


def wait_until(met: Callable[[], bool], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def records(folder: Path) -> list[ClaimRecord]:
    """What the claims of a folder's store say."""
    return list(Claims(ObjectStorage(f"file://{folder / 'store'}"), 60.0).records().values())


def done(folder: Path) -> list[str]:
    """The sweeps that have run to their end, each time that they have."""
    file = folder / "done.txt"
    return file.read_text().split() if file.exists() else []


def begun(folder: Path) -> list[str]:
    file = folder / "begun.txt"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def end_as(folder: Path, code: int = 0, error: str = "") -> None:
    """What becomes of the sweeps that are begun from now on."""
    (folder / "how.json").write_text(json.dumps({"code": code, "error": error}))
