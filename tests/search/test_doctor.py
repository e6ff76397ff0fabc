"""The doctor tries what a sweep needs, says what is missing, and leaves nothing running."""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from search import doctor
from search.check import Check
from search.cli.doctor import checks_table


class Watch(threading.Thread):
    """Sees every process that the doctor's Ray starts, and where each of them listens."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.seen: set[psutil.Process] = set()
        self.names: set[str] = set()
        self.listening: set[str] = set()

    def run(self) -> None:
        while not self.over.wait(0.1):
            for child in psutil.Process().children():
                try:
                    if any("RANKSWEEP" in part for part in child.cmdline()):
                        self.look_at([child, *child.children(recursive=True)])
                except psutil.Error:
                    continue

    def look_at(self, family: list[psutil.Process]) -> None:
        for each in family:
            self.seen.add(each)
            self.names.add(each.name())
            for connection in each.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    self.listening.add(connection.laddr.ip)

    def alive(self) -> list[psutil.Process]:
        alive = []
        for each in self.seen:
            try:
                if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                    alive.append(each)
            except psutil.NoSuchProcess:
                continue
        return alive


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Fails the test when the doctor leaves a process behind or listens beyond loopback."""
    watch = Watch()
    watch.start()
    yield watch
    watch.over.set()
    watch.join()
    # Ray's agents end by themselves when they find their parent gone, later on a busy machine.
    deadline = time.monotonic() + 90
    while watch.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert watch.alive() == []
    assert watch.listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_this_machine_is_as_the_interpreter_says() -> None:
    check = doctor.check_python()
    assert check.ok is True
    assert check.detail.startswith(".".join(map(str, sys.version_info[:3])))

    cpu, *rest = doctor.check_devices()
    assert cpu.ok is True
    memory, unit = cpu.detail.split(", ")[1].split()[:2]
    size = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert float(memory) == pytest.approx(psutil.virtual_memory().total / size, abs=0.1)
    assert rest, "GPUs are named, or said to be missing"


def test_packages_are_held_against_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1", "rich<1", "a-package-that-nobody-has>=2", 'torch>9; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)

    found = {check.name: check for check in doctor.check_packages()}

    assert {name: check.ok for name, check in found.items()} == {
        "package numpy": True,
        "package rich": False,
        "package a-package-that-nobody-has": False,
    }
    assert importlib.metadata.version("numpy") in found["package numpy"].detail
    assert found["package rich"].remedy == "pip install 'rich<1'"


def test_sources_that_are_not_installed_name_their_packages_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)

    names = {check.name for check in doctor.check_packages()}
    assert {"package torch", "package ray", "package obstore"} <= names


def test_a_store_is_tried_step_by_step(tmp_path: Path) -> None:
    checks = doctor.check_store(f"file://{tmp_path}/store")
    assert [check.name for check in checks] == [
        "store: write",
        "store: create if absent",
        "store: read",
        "store: list",
        "store: remove",
    ]
    assert all(check.ok for check in checks)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    (tmp_path / "file").write_text("in the way")
    (broken,) = doctor.check_store(f"file://{tmp_path}/file/store")
    assert broken.ok is False
    (wrong,) = doctor.check_store("ftp://host/dir")
    assert wrong.ok is False
    assert wrong.remedy.startswith("use one of") or wrong.remedy.startswith("did you mean")


def test_tracking_answers_or_says_why_not(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    absent = doctor.check_tracking(uri)
    assert absent.ok is True
    assert "not there yet" in absent.detail
    assert list(tmp_path.iterdir()) == []

    MlflowClient(tracking_uri=uri).create_experiment("movies")
    present = doctor.check_tracking(uri)
    assert present.ok is True
    assert "2 experiments" in present.detail, "MLflow's own and ours"

    (tmp_path / "file").write_text("in the way")
    hidden = doctor.check_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert hidden.ok is False
    assert f"{tmp_path}/file is no folder" in hidden.detail

    silent = doctor.check_tracking("http://user:hunter2@127.0.0.1:9")
    assert silent.ok is False
    assert "hunter2" not in silent.detail + silent.remedy
    assert doctor.check_tracking("mlruns").ok is False


def test_disk_space_is_that_of_the_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = doctor.check_disk(tmp_path / "not" / "yet")
    assert str(tmp_path) in check.detail
    assert "not/yet" not in check.detail
    assert check.ok is True

    monkeypatch.setattr(doctor, "SMALLEST_DISK", 2**60)
    assert doctor.check_disk(tmp_path).ok is False


def test_what_lies_in_a_folder_that_may_not_be_entered_is_told(locked: Path) -> None:
    assert str(locked) in doctor.check_disk(locked / "a" / "b").detail
    tracking = doctor.check_tracking(f"sqlite:///{locked}/a/mlflow.db")
    assert tracking.ok is False
    assert f"{locked} is read-only" in tracking.detail


@pytest.mark.ray
def test_a_ray_is_started_on_loopback_and_stopped(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "spaces.py").write_text("raise ValueError('of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, "a_package_that_nobody_has"))

    check, lacking = doctor.check_ray("local")

    assert (lacking.ok, lacking.detail) == (False, "has no a_package_that_nobody_has")
    assert lacking.name.startswith("node ")
    assert [each.name for each in tmp_path.iterdir()] == ["spaces.py"], "no token in the home"
    assert check.ok is True, check
    assert "CPU 1" in check.detail
    assert {"raylet", "gcs_server"} <= watch.names
    assert watch.listening


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("address", ["local", "127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_ray_that_does_not_answer_is_given_up(address: str) -> None:
    started = time.monotonic()

    (check,) = doctor.check_ray(address, timeout=2.5)

    assert check.ok is False
    assert check.detail
    assert check.remedy
    assert time.monotonic() - started < 15


def test_the_verdict_is_that_of_the_worst_check() -> None:
    fine = Check("a", True, "found")
    unknown = Check("b", None, "does not matter")
    bad = Check("c", False, "[bold]missing[/bold]", "install it")

    assert doctor.exit_code([fine, unknown]) == 0
    assert doctor.exit_code([fine, unknown, bad]) == 1
    document = json.loads(json.dumps(doctor.checks_json([fine, unknown, bad])))
    assert document["ok"] is False
    assert [each["ok"] for each in document["checks"]] == [True, None, False]
    assert document["checks"][2]["remedy"] == "install it"

    screen = Console(file=io.StringIO(), width=120)
    screen.print(checks_table([fine, unknown, bad]))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]missing[/bold]; install it" in text


def test_everything_is_examined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, float]] = []

    def answer(address: str, timeout: float) -> list[Check]:
        asked.append((address, timeout))
        return [Check("ray", True, "")]

    monkeypatch.setattr(doctor, "check_ray", answer)

    checks = doctor.examine(ray_address="auto", root=tmp_path / "root", ray_timeout=5)

    names = {check.name.split(":")[0].split()[0] for check in checks}
    assert {"python", "package", "cpu", "ray", "store", "tracking", "disk"} <= names
    assert asked == [("auto", 5)]
    assert (tmp_path / "root" / "store").is_dir()
