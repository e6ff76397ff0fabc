"""A kind and a metric of the user's own on Ray's workers, which cannot import their module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spaces.methods.registry import make_plan, parse_choice
from tests.conftest import EXAMPLES
from trainables.bases.location import fingerprint
from trainables.bases.structure import meta_base
from trainables.resident.groups import GroupSettings, ResidentWorkers
from trainables.resident.jobs import TrialJob
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task
from trainables.training.settings import TrainSettings

pytestmark = pytest.mark.ray

METRIC = """

def share_of_good(answers, references):
    return [float(each == "positive") for each in answers]
"""


def test_their_code_goes_to_the_workers_with_the_task(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (EXAMPLES / "own_kind.py").read_text() + METRIC
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/of_a_test.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    own = {"kind": "mine.of_a_test:Smoothed", "metric": "mine.of_a_test:share_of_good"}
    settings = TaskSettings.model_validate({**tiny_sweep["task"], **own})
    task = build_task(settings, tiny_sweep["base"])
    targets = meta_base(
        tiny_sweep["base"], task.head, 2, tiny_sweep["profile"]["target_modules"]
    ).targets
    job = TrialJob(
        plan=make_plan(parse_choice({"method": "lora", "rank": 4}), targets, None).to_bytes(),
        learning_rate=5e-3,
        seed=3,
        train=TrainSettings(batch_size=16, epochs=1),
        split="test",
    )
    with ResidentWorkers(
        base_uri=tiny_sweep["base"],
        base_fingerprint=fingerprint(tiny_sweep["base"]),
        task=task,
        dtype="float32",
        deepspeed={},
        settings=GroupSettings(resources_per_worker={"CPU": 1}),
        storage_path=str(tmp_path),
    ) as workers:
        result = workers.run(job)
    assert 0 <= result.metrics[own["metric"]] <= 1
