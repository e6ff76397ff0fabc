"""Resident workers on a real Ray Train group: what survives, what leaks, what stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from spaces.errors import JobError
from spaces.methods.registry import make_plan, parse_choice
from spaces.profile import Profile
from trainables.bases.location import fingerprint
from trainables.bases.structure import meta_base
from trainables.profiling.settings import ProfileSettings
from trainables.resident.activations import Activations
from trainables.resident.groups import GroupSettings, ResidentWorkers
from trainables.resident.jobs import (
    Cancelled,
    Done,
    Epoch,
    Event,
    Failed,
    GroupFacts,
    ProfileJob,
    ProfileSteps,
    Requeued,
    Steps,
    TrialJob,
)
from trainables.resident.queue import events_of
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task, build_task
from trainables.training.settings import TrainSettings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def task(tiny_sweep: dict[str, Any]) -> Task:
    return build_task(TaskSettings.model_validate(tiny_sweep["task"]), tiny_sweep["base"])


@contextmanager
def group_of(
    tiny_sweep: dict[str, Any],
    task: Task,
    tmp_path: Path,
    on_steps: Callable[[str, Steps], None] | None = None,
    deepspeed: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[ResidentWorkers]:
    """One group on the tiny base."""
    with ResidentWorkers(
        base_uri=tiny_sweep["base"],
        base_fingerprint=settings.pop("base_fingerprint", fingerprint(tiny_sweep["base"])),
        task=task,
        dtype="float32",
        deepspeed=deepspeed or {},
        settings=GroupSettings(resources_per_worker={"CPU": 1}, **settings),
        storage_path=str(tmp_path),
        on_steps=on_steps,
    ) as workers:
        yield workers


@pytest.fixture(scope="module")
def told() -> list[tuple[str, Steps]]:
    """What the shared group tells of how far its jobs are."""
    return []


@pytest.fixture(scope="module")
def group(
    ray_cluster: None,
    tiny_sweep: dict[str, Any],
    task: Task,
    told: list[tuple[str, Steps]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ResidentWorkers]:
    """A group of two workers that the tests of this file share; they compute layers again."""
    with group_of(
        tiny_sweep, task, tmp_path_factory.mktemp("group"),
        on_steps=lambda job_id, steps: told.append((job_id, steps)),
        workers_per_group=2, max_failures=1, activations=Activations("on"),
    ) as workers:  # fmt: skip
        yield workers


def trial(
    tiny_sweep: dict[str, Any], choice: dict[str, Any], profile: Profile | None = None, **train: Any
) -> TrialJob:
    """A job that trains the plan of a choice."""
    targets = meta_base(
        tiny_sweep["base"], "classification", 2, tiny_sweep["profile"]["target_modules"]
    ).targets
    parsed = parse_choice(choice)
    return TrialJob(
        plan=make_plan(parsed, targets, profile).to_bytes(),
        learning_rate=train.pop("learning_rate", 5e-3),
        seed=3,
        train=TrainSettings(batch_size=16, **train),
    )


LORA = {"method": "lora", "rank": 4}


def groups_up(workers: ResidentWorkers, number: int) -> dict[int, GroupFacts]:
    """What the groups say of themselves, once so many are up."""
    give_up = time.monotonic() + 180
    while len(up := ray.get(workers.queue.groups.remote())) < number:
        assert time.monotonic() < give_up, f"{len(up)} of {number} groups are up"
        time.sleep(0.2)
    return dict(up)


def losses(workers: ResidentWorkers, job: TrialJob) -> list[tuple[float, float]]:
    found = []

    def on_event(event: Event) -> None:
        if isinstance(event, Epoch):
            found.append((event.metrics["train_loss"], event.metrics["dev_loss"]))

    workers.run(job, on_event=on_event)
    return found


def test_nothing_of_a_job_survives_into_the_next(
    group: ResidentWorkers, tiny_sweep: dict[str, Any]
) -> None:
    assert groups_up(group, 1)[0].recomputes
    first = losses(group, trial(tiny_sweep, LORA, epochs=3))
    assert len(first) == 3
    settings = ProfileSettings.model_validate(tiny_sweep["profile"])
    profile = Profile.from_bytes(group.run(ProfileJob(settings=settings)).profile, "test")
    for method in ("pilora", "taso", "sensitivity", "joint"):
        for seed in (0, 1):
            other = losses(group, trial(tiny_sweep, {"method": method, "seed": seed}, profile))
            assert len(other) == 3
    assert losses(group, trial(tiny_sweep, LORA, epochs=3)) == first


def test_a_job_that_fails_leaves_the_group_at_work(
    group: ResidentWorkers, tiny_sweep: dict[str, Any]
) -> None:
    with pytest.raises(JobError, match="not finite"):
        group.run(trial(tiny_sweep, LORA, learning_rate=1e30))
    assert len(losses(group, trial(tiny_sweep, LORA, epochs=1))) == 1


def test_a_cancelled_job_tells_how_far_it_is_and_stops_long_before_its_end(
    group: ResidentWorkers, tiny_sweep: dict[str, Any], told: list[tuple[str, Steps]]
) -> None:
    job_id = ray.get(group.queue.submit.remote(trial(tiny_sweep, LORA, epochs=100_000)))
    told.clear()
    seen: list[type[Event]] = []
    for event in events_of(group.queue, job_id):
        seen.append(type(event))
        if seen.count(Epoch) >= 2 and told and told[-1][1].done > 1:
            ray.get(group.queue.cancel.remote(job_id))
    assert seen[-1] is Cancelled
    assert seen.count(Epoch) < 10_000
    of_job, steps = told[-1]
    assert of_job == job_id
    assert steps.total == 6 * 100_000  # 96 rows in batches of 16
    assert 0 < steps.done <= 6 * seen.count(Epoch) + 6
    assert steps.learning_rate is not None
    assert 0 < steps.learning_rate <= 5e-3


@pytest.mark.parametrize(
    ("phase", "settings"),
    [("initial phase", {"epochs": 100_000}), ("static pass", {"batch_size": 1})],
)
def test_what_a_listener_raises_cancels_a_profile_in_both_phases(
    group: ResidentWorkers, tiny_sweep: dict[str, Any], phase: str, settings: dict[str, Any]
) -> None:
    class EnoughError(Exception):
        pass

    reached = []

    def on_event(event: Event) -> None:
        if isinstance(event, ProfileSteps) and event.phase == phase:
            reached.append(event)
            raise EnoughError

    profile = {**tiny_sweep["profile"], "calibration_batches": "all", **settings}
    job = ProfileJob(settings=ProfileSettings.model_validate(profile))
    with pytest.raises(EnoughError):
        group.run(job, on_event=on_event)
    assert len(reached) == 1
    assert len(losses(group, trial(tiny_sweep, LORA, epochs=1))) == 1


def kill_a_worker(group: ResidentWorkers) -> None:
    os.kill(groups_up(group, 1)[0].pid, signal.SIGKILL)


def test_a_killed_workers_job_is_done_again_with_the_same_result(
    group: ResidentWorkers, tiny_sweep: dict[str, Any]
) -> None:
    job = trial(tiny_sweep, LORA, epochs=40)
    undisturbed = losses(group, job)
    job_id = ray.get(group.queue.submit.remote(job))
    seen, found = [], {}
    for event in events_of(group.queue, job_id):
        seen.append(type(event))
        if isinstance(event, Epoch):
            found[event.epoch] = (event.metrics["train_loss"], event.metrics["dev_loss"])
            if event.epoch == 3 and Requeued not in seen:
                kill_a_worker(group)
    assert seen.count(Requeued) == 1
    assert seen[-1] is Done
    assert [found[epoch] for epoch in range(1, 41)] == undisturbed


def test_two_groups_of_two_workers_serve_side_by_side_with_the_same_result(
    group: ResidentWorkers, tiny_sweep: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    job = trial(tiny_sweep, LORA, epochs=3)
    alone = losses(group, job)
    with (
        group_of(tiny_sweep, task, tmp_path, groups=2, workers_per_group=2) as workers,
        ThreadPoolExecutor(4) as pool,
    ):
        up = groups_up(workers, 2)
        found = list(pool.map(lambda _: losses(workers, job), range(4)))
    assert found == [alone] * 4
    assert {each.workers for each in up.values()} == {2}
    assert len({each.pid for each in up.values()}) == 2


def test_a_group_that_divides_its_base_serves_the_same_result(
    group: ResidentWorkers, tiny_sweep: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    job = trial(tiny_sweep, LORA, epochs=2)
    wanted = losses(group, job)
    zero = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    with group_of(tiny_sweep, task, tmp_path, deepspeed=zero, workers_per_group=2) as workers:
        for found, whole in zip(losses(workers, job), wanted, strict=True):
            assert found == pytest.approx(whole, rel=1e-5)


def test_a_job_that_keeps_killing_its_worker_fails_and_the_next_is_served(
    group: ResidentWorkers, tiny_sweep: dict[str, Any]
) -> None:
    job_id = ray.get(group.queue.submit.remote(trial(tiny_sweep, LORA, epochs=100_000)))
    deaths, killed, last = 0, -1, None
    for event in events_of(group.queue, job_id):
        last = event
        deaths += isinstance(event, Requeued)
        if isinstance(event, Epoch) and killed < deaths:
            killed = deaths
            kill_a_worker(group)
    assert isinstance(last, Failed)
    assert "died 2 times" in last.error
    assert len(losses(group, trial(tiny_sweep, LORA, epochs=1))) == 1


def test_a_base_that_differs_from_the_drivers_fails_every_job_and_says_why(
    ray_cluster: None, tiny_sweep: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    with group_of(tiny_sweep, task, tmp_path, base_fingerprint="0" * 64) as workers:
        with pytest.raises(JobError, match="differs from the driver's"):
            workers.run(trial(tiny_sweep, LORA))
        deadline = time.monotonic() + 120
        while workers.lost() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "differs from the driver's" in str(workers.lost())
