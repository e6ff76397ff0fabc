"""The acceptance benchmark's own logic: what it makes of checks, and its rehearsal on a CPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_acceptance.py"

# A room's process that tells of its checks by their names, as the real one does.
ROOM = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
for name in sys.argv[sys.argv.index("--only") + 1:]:
    with (folder / "told.jsonl").open("a") as told:
        print(json.dumps({"event": "began"}), file=told, flush=True)
        if name == "hangs":
            time.sleep(60)
        if name == "dies":
            sys.exit("the process is gone")
        raises = name == "raises"
        fact = {"figure": None if raises else float(name), "text": "said", "seconds": 0.1}
        print(json.dumps({"event": "ended", "last": raises, **fact}), file=told)
    if raises:
        break
"""


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return __import__("gpu_acceptance")


def outcomes(acceptance: ModuleType, folder: Path, *names: str, **settings: Any) -> dict[str, Any]:
    """What is told of checks of these names, each of which is to be at most 1."""
    (folder / "room.py").write_text(ROOM)
    of_the_device = settings.pop("of_the_device", False)
    checks = tuple(
        acceptance.Check(name, "a check", 1.0, limit_s=0.5, of_the_device=of_the_device)
        for name in names
    )
    run = {"rehearsal": False, "until": time.monotonic() + 60, **settings}
    report = acceptance.Report(folder / "out.jsonl")
    acceptance.RoomRun(
        acceptance.Room("fake", checks), report,
        program=(sys.executable, str(folder / "room.py")), **run,
    ).run()  # fmt: skip
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == list(names)
    return {line["name"]: line for line in lines}


def test_a_check_that_raises_hangs_or_dies_has_failed_and_the_others_go_on(
    acceptance: ModuleType, tmp_path: Path
) -> None:
    found = outcomes(acceptance, tmp_path, "0.5", "raises", "hangs", "dies", "1", "2", "nan")
    results = [line["result"] for line in found.values()]
    assert results == ["pass", "fail", "fail", "fail", "pass", "fail", "fail"]
    assert "not done after" in found["hangs"]["text"]
    assert "the process is gone" in found["dies"]["text"]
    assert found["nan"]["figure"] is None  # which JSON has no word for


def test_what_only_a_device_shows_is_not_judged_in_a_rehearsal(
    acceptance: ModuleType, tmp_path: Path
) -> None:
    found = outcomes(acceptance, tmp_path, "0.5", "2", rehearsal=True, of_the_device=True)
    assert [line["result"] for line in found.values()] == ["skipped", "skipped"]
    assert "judged on a device alone" in found["2"]["text"]


def test_when_the_time_is_over_nothing_more_is_begun(
    acceptance: ModuleType, tmp_path: Path
) -> None:
    found = outcomes(acceptance, tmp_path, "0.5", until=time.monotonic())
    assert (found["0.5"]["result"], found["0.5"]["seconds"]) == ("fail", 0.0)


def test_goals_are_bounds_and_every_check_has_its_function(acceptance: ModuleType) -> None:
    most, least = acceptance.Check("a", "", 1.0), acceptance.Check("b", "", 1.0, at_least=True)
    assert [most.is_met_by(each) for each in (0.9, 1.0, 1.1, math.nan)] == [
        True,
        True,
        False,
        False,
    ]
    assert [least.is_met_by(each) for each in (0.9, 1.0, 1.1, math.nan)] == [
        False, True, True, False,
    ]  # fmt: skip
    for phase in acceptance.PHASES:
        for room in phase:
            text = (SCRIPT.parent / "acceptance" / f"{room.name}.py").read_text()
            for check in room.checks:
                assert f"\ndef {check.function}(ground: Ground) -> Found:\n" in text


def rehearsed(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    out = folder / "out.jsonl"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rehearse", "--out", str(out), *options],
        capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["name"]: line for line in lines}


@pytest.mark.command
def test_the_block_methods_and_the_masks_are_right_on_this_machine(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, "--only", "dense", "mask-counts")
    assert {name: line["result"] for name, line in found.items()} == {
        "dense": "pass",
        "mask-counts": "pass",
    }
    assert 0 < found["dense"]["figure"] < 1e-4


@pytest.mark.long
def test_all_that_needs_no_ray_is_rehearsed(acceptance: ModuleType, tmp_path: Path) -> None:
    rooms = [room for phase in acceptance.PHASES for room in phase if room.trains]
    names = [check.name for room in rooms for check in room.checks]
    found = rehearsed(tmp_path, "--only", *names)
    assert sorted(found) == sorted(names)
    judged = {check.name for room in rooms for check in room.checks if not check.of_the_device}
    assert {name for name, line in found.items() if line["result"] == "pass"} == judged
