"""A kind and a metric of the user's own on Ray's workers, which cannot import their module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from spaces.errors import JobError
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
POISON = """

class Poisoned(Smoothed):
    def summed_loss(self, outputs, labels):
        from pathlib import Path

        flag = Path({flag!r})
        if flag.exists():
            flag.unlink()
            raise RuntimeError("CUDA error: device-side assert triggered\\nSearch for it")
        return super().summed_loss(outputs, labels)
"""


@contextmanager
def workers_of(
    tiny_sweep: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    told: list[str] | None = None,
    **own: str,
) -> Iterator[tuple[ResidentWorkers, TrialJob]]:
    """A group for a task of one's own, whose code stands in a folder of this test's, and a job."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{tmp_path.name}.py").write_text(
        (EXAMPLES / "own_kind.py").read_text() + code
    )
    monkeypatch.chdir(tmp_path)
    named = {key: f"mine.{tmp_path.name}:{name}" for key, name in own.items()}
    settings = TaskSettings.model_validate({**tiny_sweep["task"], **named})
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
        on_notice=([] if told is None else told).append,
    ) as workers:
        yield workers, job


def test_their_code_goes_to_the_workers_with_the_task(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with workers_of(
        tiny_sweep, tmp_path, monkeypatch, METRIC, kind="Smoothed", metric="share_of_good"
    ) as (workers, job):
        result = workers.run(job)
    assert 0 <= result.metrics[f"mine.{tmp_path.name}:share_of_good"] <= 1


def test_a_job_that_poisons_its_process_fails_and_the_next_is_done_by_a_new_one(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flag").touch()
    code, told = POISON.format(flag=str(tmp_path / "flag")), list[str]()
    with workers_of(tiny_sweep, tmp_path, monkeypatch, code, told, kind="Poisoned") as (
        workers,
        job,
    ):
        with pytest.raises(JobError, match="device-side assert triggered; the worker starts anew"):
            workers.run(job)
        before = ray.get(workers.queue.groups.remote())
        assert workers.run(job).first_step_at
        (now,) = ray.get(workers.queue.groups.remote()).values()
    assert now.pid not in {each.pid for each in before.values()}
    assert any("lost a worker" in each and "device-side assert" in each for each in told)
    assert not any("starts again (try" in each for each in told)  # the job was no victim
