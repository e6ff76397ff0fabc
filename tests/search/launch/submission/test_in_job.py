"""The command that runs on the cluster: its output is what a follower reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli import in_job
from search.cli.main import main
from search.cli.output import Result
from search.config.sweep import SweepConfig
from search.launch.submission.following import RESULT
from spaces.errors import JobError


def unpacked(folder: Path, sweep: dict[str, Any]) -> str:
    """What has travelled, as a job finds it."""
    job: dict[str, Any] = {
        "data": [], "store": None, "tracking": None, "required": {}, "wanted": ["SOME_TOKEN"],
        "requires": [], "python": ">=3.11", "folder": "x", "resume": True,
        "scheduled_by": "nightly", "base_name": "encoder",
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return str(folder)


@pytest.mark.parametrize(
    ("error", "code"),
    [("", 0), ("no trial ran to its end", 1), (JobError("lost"), 1), (KeyboardInterrupt(), 130)],
)
def test_the_result_is_one_line_of_its_output_however_it_ends(
    error: Any,
    code: int,
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def launched(config: SweepConfig, **options: Any) -> Result:
        asked.update(options, store=config.store)
        return Result({"states": {"complete": 1}, "value": float("nan")}, ["a\nb"], error)

    monkeypatch.setattr(in_job, "run_launch", launched)
    monkeypatch.setenv("RANKSWEEP_STORE", "s3://bucket/of-the-cluster")
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    with pytest.raises(SystemExit) as left:
        main(["job", unpacked(tmp_path, tiny_sweep)])
    assert left.value.code == code
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    result = json.loads(line.removeprefix(RESULT))
    assert result["document"] == {"states": {"complete": 1}, "value": None}
    assert result["drawn"] == "a\nb\n"
    assert asked == {
        "resume": True, "scheduled_by": "nightly", "base_name": "encoder",
        "store": "s3://bucket/of-the-cluster",
    }  # fmt: skip
    assert "SOME_TOKEN was set where the sweep was submitted and is not here" in err


def test_a_sweep_that_is_wrong_there_ends_with_one_line(
    tiny_sweep: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["job", unpacked(tmp_path, {**tiny_sweep, "trian": {}})])
    assert left.value.code == 2
    assert capfd.readouterr().err.startswith("error: trian: unknown key")
