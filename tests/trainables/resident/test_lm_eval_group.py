"""A group of workers of which lm-eval is asked what it cannot do keeps its numbers and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spaces.errors import JobError
from tests.trainables.lm_eval_examples import CHOICE, asked_of, write_tasks
from tests.trainables.resident.test_groups import LORA, group_of, trial
from trainables.resident.jobs import BaseJob
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task

pytestmark = pytest.mark.ray


def test_lm_eval_that_fails_costs_neither_the_trial_s_numbers_nor_the_group(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    """The base is a classifier, which does not write."""
    asked = asked_of(write_tasks(tmp_path / "tasks", CHOICE), tmp_path)
    task = build_task(TaskSettings.model_validate(tiny_sweep["task"]), tiny_sweep["base"])
    job = trial(tiny_sweep, LORA, epochs=1)
    settings: dict[str, Any] = {"workers_per_group": 2, "max_failures": 0}
    with group_of(tiny_sweep, task, tmp_path / "ray", **settings) as workers:
        plain = workers.run(job)
        scored = workers.run(replace(job, lm_eval=asked))
        with pytest.raises(JobError, match="the base's measuring failed: lm-eval: "):
            workers.run(BaseJob(lm_eval=asked))
        again = workers.run(job)
    assert plain.lm_eval_error is None
    assert scored.lm_eval == {}
    assert str(scored.lm_eval_error).startswith("lm-eval: ")
    for key in ("accuracy", "dev_loss", "train_loss"):
        assert plain.metrics[key] == scored.metrics[key] == again.metrics[key], key
