"""What the guide says of sweeps for new models, done as it says: from no model to a champion."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from search.config.yaml_file import parse_yaml
from tests.search.launches import environment

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "schedules"
GUIDE = (ROOT / "docs" / "guides" / "new-models.md").read_text()


def test_the_schedule_of_the_guide_is_the_example() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    example = (EXAMPLES / "new-models.yaml").read_text()
    assert parse_yaml(shown, "the guide", words=("on",)) == parse_yaml(example, "it", words=("on",))


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_reader_gets_from_nothing_to_a_champion(
    tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    """With a tiny model and few rows in place of those that the set-up fetches."""
    shutil.copytree(EXAMPLES, tmp_path / "examples" / "schedules")
    sweep = tmp_path / "examples" / "schedules" / "movie.yaml"
    sweep.write_text(sweep.read_text().replace("max_length: 64", "max_length: 16"))
    (tmp_path / "data" / "movie").mkdir(parents=True)
    for split, file in tiny_sweep["task"]["data"].items():
        shutil.copy(file, tmp_path / "data" / "movie" / f"{split}.parquet")
    words = ("schedule check", "schedule run", "schedule status", "champion")
    check, run, status, champion = (
        re.findall(rf"^ranksweep {each} .*|^ranksweep {each}$", GUIDE, re.MULTILINE)[0]
        for each in words
    )

    checked = done(tmp_path, check)
    assert checked.returncode == 0, checked.stderr
    assert "no model is seen" in checked.stdout

    service = subprocess.Popen(
        command(run), cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        base = Path(tiny_sweep["base"].removeprefix("path:"))
        shutil.copytree(base, tmp_path / "checkpoints" / "step-100")
        waited = wait_until_done(tmp_path, status, service)
        service.send_signal(signal.SIGTERM)
        _, said = service.communicate(timeout=60)
    finally:
        service.kill()
    assert service.returncode == 130, said
    (claim,) = waited
    assert claim["model"] == "step-100"
    assert claim["schedule"] == "movie-new-models"
    assert claim["best"]["metric"] == "accuracy"

    told = done(tmp_path, f"{champion} --json")
    assert told.returncode == 0, told.stderr
    (holder,) = json.loads(told.stdout)
    assert holder["sweep"] == claim["sweep"]
    assert holder["model"] == "movie-sentiment-checkpoints", "what comes there later competes"
    assert len(holder["values"]) == 3


def command(line: str) -> list[str]:
    words = shlex.split(line)
    assert words[0] == "ranksweep"
    return [sys.executable, "-P", "-m", "search.cli.main", *words[1:]]


def done(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(line), cwd=folder, env=environment(), text=True, capture_output=True,
        timeout=120, check=False,
    )  # fmt: skip


def wait_until_done(
    folder: Path, status: str, service: subprocess.Popen[str]
) -> list[dict[str, Any]]:
    give_up = time.monotonic() + 500
    while time.monotonic() < give_up:
        assert service.poll() is None, service.communicate()[1]
        found = done(folder, f"{status} --json")
        claims: list[dict[str, Any]] = json.loads(found.stdout or "[]")
        assert not [each for each in claims if each["state"] == "failed"], claims
        if claims and all(each["state"] == "done" for each in claims):
            return claims
        time.sleep(2)
    raise AssertionError("the model is not swept")
