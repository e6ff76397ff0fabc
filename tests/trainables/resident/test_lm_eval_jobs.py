"""A worker measures its resident base by lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spaces.errors import JobError
from tests.trainables.lm_eval_examples import (
    CHOICE,
    asked_of,
    decoder,
    of_lm_eval,
    save_decoder,
    write_tasks,
)
from trainables.bases.loading import Base
from trainables.engine.workers import Workers
from trainables.resident.jobs import BaseJob
from trainables.resident.worker import Resident, perform

nothing: Any = None


class Channel:
    """The line to a queue that cancels nothing."""

    def should_stop(self) -> bool:
        return False


def test_the_untouched_base_is_measured_as_lm_eval_measures_its_checkpoint(
    alone: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_decoder(tmp_path / "base")
    base = Base(f"path:{folder}", "f" * 64, decoder(folder), nothing, "llama")
    resident, channel = Resident(base, nothing, alone, {}), Channel()
    files = write_tasks(tmp_path / "tasks", CHOICE)
    some_channel: Any = channel
    found = perform(BaseJob(lm_eval=asked_of(files, tmp_path)), resident, some_channel)
    monkeypatch.chdir(tmp_path / "tasks")
    assert dict(found.lm_eval) == pytest.approx(of_lm_eval(folder, files), rel=1e-5)
    with pytest.raises(JobError, match=r"lm-eval: .*is not there"):
        perform(BaseJob(lm_eval=asked_of(["gone.yaml"], tmp_path)), resident, some_channel)

    def version(_: str) -> str:
        return "0.4.9"

    monkeypatch.setattr("trainables.training.lm_eval_tasks.version", version)
    with pytest.raises(JobError, match=r"lm-eval 0\.4\.9 is installed, .* on every node$"):
        perform(BaseJob(lm_eval=asked_of(files, tmp_path)), resident, some_channel)
