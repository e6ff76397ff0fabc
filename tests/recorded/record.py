"""Makes the recorded folder (folder.py): `python -m tests.recorded.record`.

It stands for the folders that users have. So it is made anew only to hold something more, by the
commit that is to be remembered, and never to make tests/search/test_recorded.py pass.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import write_tiny_sweep
from tests.recorded.folder import ARCHIVE, COMMAND, STATE, environment, pack, ranksweep

TASK = "sentiment"
TRIALS = {"finished": 9, "cut": 10}
COMPLETE_BEFORE_THE_CUT = 3


def record(folder: Path) -> None:
    """Fill the folder and pack it."""
    _write_sweeps(folder)
    finished = _answer(folder, "launch", "finished.yaml")
    finished["tracking_uri"] = "sqlite:///.ranksweep/mlflow.db"  # not where this machine had it
    _launch_and_kill(folder)
    answers = {
        "finished": finished,
        "best": _answer(folder, "best", "--task", TASK, "--top", "99"),
        "compare": _answer(folder, "compare", "finished"),
        "profiles": _answer(folder, "profiles", "list"),
    }
    for name, answer in answers.items():
        (folder / f"{name}.json").write_text(json.dumps(answer, indent=1) + "\n")
    for tune in (folder / STATE / "sweeps").glob("*/tune"):
        shutil.rmtree(tune)  # Ray's own, which no command reads again
    pack(folder)


def _write_sweeps(folder: Path) -> None:
    sweep = write_tiny_sweep(folder)
    # A package, for of a base that is given by its path a sweep remembers the absolute path.
    (folder / "recorded_bert").mkdir()
    (folder / "base").rename(folder / "recorded_bert" / "model")
    sweep["base"] = "package:recorded_bert/model"
    sweep["task"]["name"] = TASK
    sweep["task"]["data"] = {split: f"{split}.parquet" for split in ("train", "dev", "test")}
    sweep["space"]["learning_rate"] = {"low": 3e-3, "high": 3e-2, "log": True}
    sweep["train"] = {"epochs": 6, "batch_size": 8}
    searches: dict[str, Any] = {
        "finished": {"scheduler": "none", "repeats": {"top": 1, "seeds": 2}},
        "cut": {"seed": 1},
    }
    for name, search in searches.items():
        own = {"name": name, "search": {"trials": TRIALS[name], **search}}
        confirm = {"seeds": 2} if name == "finished" else None
        text = yaml.safe_dump({**sweep, **own, "confirm": confirm}, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text)


def _answer(folder: Path, *command: str) -> Any:
    done = ranksweep(folder, *command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _launch_and_kill(folder: Path) -> None:
    """Kill the driver of a sweep that has trials complete, running and to come."""
    driver = subprocess.Popen(
        [*COMMAND, "launch", "cut.yaml"], cwd=folder, env=environment(folder),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert driver.stderr is not None
    complete = 0
    for line in driver.stderr:
        complete += re.search(r"trial \d+: .* complete, ", line) is not None
        if complete >= COMPLETE_BEFORE_THE_CUT and re.search(r"trial \d+: epoch 2 of", line):
            break
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    psutil.wait_procs(children, timeout=90)
    sweep = folder / STATE / "sweeps" / "cut"
    with closing(sqlite3.connect(sweep / "study.db")) as study:
        states = [state for (state,) in study.execute("SELECT state FROM trials")]
    print(f"cut: {', '.join(states)}")
    assert "RUNNING" in states, "killed too late; record again"
    assert len(states) - states.count("RUNNING") < TRIALS["cut"], "killed too late; record again"
    assert any((sweep / "weights").iterdir()), "no weights are held; record again"


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp(prefix="rs-"))
    try:
        record(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")
