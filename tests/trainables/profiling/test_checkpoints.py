"""A profile that is interrupted anywhere goes on from its checkpoint and ends the same."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load

from search.store.objects import ObjectStorage
from spaces.errors import JobError, StoreError
from spaces.profile import Profile
from tests.trainables.conftest import head_of, run_group, tiny_bert, tiny_task
from trainables.bases.location import fingerprint
from trainables.bases.structure import resolve_targets
from trainables.engine import memory
from trainables.engine.workers import Workers
from trainables.profiling import static_pass
from trainables.profiling.accumulators import Accumulators
from trainables.profiling.checkpoints import MANIFEST, remove_checkpoints
from trainables.profiling.profile import compute_profile
from trainables.profiling.settings import ProfileSettings
from trainables.profiling.static_pass import Progress
from trainables.resident.groups import GroupSettings, ResidentWorkers
from trainables.resident.jobs import Done, Event, ProfileJob, ProfileResult, ProfileSteps, Requeued
from trainables.resident.queue import events_of
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import build_task

# 21 rows in batches of 5, twice: 10 steps, then 5 micro-batches.
SETTINGS = ProfileSettings(
    target_modules=("query", "output.dense"), rank=3, epochs=2, score_every=3,
    calibration_batches="all", batch_size=5, top_percent=(2, 7.5, 30), learning_rate=5e-3, seed=4,
    max_grad_norm=0.05, weight_decay=0.01, checkpoint_every=2,
)  # fmt: skip
DROPPING = SETTINGS.model_copy(update={"dropout": 0.3, "base_dropout": True})


class Interrupted(BaseException):
    """What ends a job as a crash does: nothing handles it."""


class Objects(dict[str, bytes]):
    """A store in memory."""

    def put(self, name: str, content: bytes) -> None:
        self[name] = content

    def delete(self, name: str) -> bool:
        return self.pop(name, None) is not None

    def list(self, prefix: str) -> tuple[str, ...]:
        return tuple(name for name in self if name.startswith(f"{prefix}/"))

    def checkpoint(self) -> dict[str, Any]:
        return json.loads(self[MANIFEST])["checkpoint"]


def profile_of(
    workers: Workers,
    storage: Any = None,
    settings: ProfileSettings = SETTINGS,
    *,
    dtype: torch.dtype = torch.float32,
    stage: int = 0,
    factor: float = 1.0,
    progress: Progress = lambda *_: None,
) -> tuple[Profile, list[str]]:
    """A profile of the tiny base, and what its job said."""
    model = tiny_bert(dtype, dropout=0.2 if settings.base_dropout else 0.0)
    head = head_of(model)
    said: list[str] = []
    with torch.no_grad():
        head["classifier"].weight.mul_(factor)
    profile = compute_profile(
        model, head, resolve_targets(model, ("classifier",), settings.target_modules), tiny_task(),
        settings, workers=workers, deepspeed={"zero_optimization": {"stage": stage}},
        checkpoints=storage, on_message=said.append, on_progress=progress,
    )  # fmt: skip
    return profile, said


def stopping_at(phase: str, step: int) -> Progress:
    def progress(now: str, done: int, _total: int, _learning_rate: float | None = None) -> None:
        if (now, done) == (phase, step):
            raise Interrupted

    return progress


def interrupt(
    workers: Workers, storage: Any, phase: str, step: int, *args: Any, **kwargs: Any
) -> None:
    with pytest.raises(Interrupted):
        profile_of(workers, storage, *args, progress=stopping_at(phase, step), **kwargs)


def assert_same(found: Profile, wanted: Profile, rtol: float = 0.0) -> None:
    assert found.scored_steps == wanted.scored_steps
    for name, module in wanted.modules.items():
        for field, values in vars(module).items():
            other = getattr(found.modules[name], field)
            if rtol and field in ("row_importance", "hessian_diag"):
                np.testing.assert_allclose(other, values, rtol=rtol, err_msg=f"{name} {field}")
            else:
                np.testing.assert_array_equal(other, values, err_msg=f"{name} {field}")


@pytest.fixture(scope="module")
def undisturbed(alone: Workers) -> dict[bool, Profile]:
    """The profile that nothing interrupts, without dropout and with it."""
    return {drops: profile_of(alone, None, DROPPING if drops else SETTINGS)[0]
            for drops in (False, True)}  # fmt: skip


# -- going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("drops", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(
    ("phase", "step", "goes_on"),
    [
        ("initial phase", 1, None),
        ("initial phase", 2, "step 2 of the initial phase"),
        ("initial phase", 3, "step 2 of the initial phase"),
        ("initial phase", 5, "step 4 of the initial phase"),
        ("initial phase", 6, "step 6 of the initial phase"),
        ("initial phase", 10, "step 8 of the initial phase"),
        ("static pass", 1, "step 0 of the static pass"),
        ("static pass", 3, "step 2 of the static pass"),
        ("static pass", 4, "step 2 of the static pass"),
        ("static pass", 5, "step 4 of the static pass"),
    ],
)
def test_a_profile_interrupted_at_any_step_goes_on_and_is_the_same_bit_for_bit(
    drops: bool,
    phase: str,
    step: int,
    goes_on: str | None,
    alone: Workers,
    undisturbed: dict[bool, Profile],
) -> None:
    storage, settings = Objects(), DROPPING if drops else SETTINGS
    interrupt(alone, storage, phase, step, settings)
    profile, said = profile_of(alone, storage, settings)
    wanted = [] if goes_on is None else [f"the profile goes on from its checkpoint: {goes_on}"]
    assert said == wanted
    assert_same(profile, undisturbed[drops])


def test_a_job_that_dies_after_every_checkpoint_still_ends_the_same(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    class Dying(Objects):
        def put(self, name: str, content: bytes) -> None:
            super().put(name, content)
            if name == MANIFEST:
                raise Interrupted

    storage = Dying()
    deaths: list[tuple[str, int]] = []
    settings = DROPPING.model_copy(update={"checkpoint_every": 1})
    while len(deaths) < 100:
        try:
            profile, _ = profile_of(alone, storage, settings)
            break
        except Interrupted:
            deaths.append((storage.checkpoint()["phase"], storage.checkpoint()["step"]))
    assert deaths == [("initial phase", i) for i in range(1, 10)] + [
        ("static pass", i) for i in range(5)
    ]
    assert_same(profile, undisturbed[True])


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masters_moments_and_loss_scale_go_on_under_every_zero_stage(
    dtype: torch.dtype, stage: int, alone: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    # so large a head makes the loss scaler of float16 refuse the first steps
    of: dict[str, Any] = {
        "dtype": dtype,
        "stage": stage,
        "factor": 40.0 if dtype == torch.float16 else 1.0,
    }
    settings = SETTINGS.model_copy(update={"calibration_batches": 1, "max_grad_norm": None})
    wanted, _ = profile_of(alone, None, settings, **of)
    assert (wanted.scored_steps < 4) == (dtype == torch.float16)
    for step in (3, 7):  # after few steps, where float16 has taken none, and after more
        storage = Objects()
        interrupt(alone, storage, "initial phase", step, settings, **of)
        profile, said = profile_of(alone, storage, settings, **of)
        assert said == [
            f"the profile goes on from its checkpoint: step {step - 1} of the initial phase"
        ]
        assert_same(profile, wanted)


def test_a_run_under_another_zero_stage_goes_on_from_the_same_state(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    for saved_under, goes_on_under in ((0, 2), (1, 0)):
        storage = Objects()
        interrupt(alone, storage, "initial phase", 7, stage=saved_under)
        profile, said = profile_of(alone, storage, stage=goes_on_under)
        assert "step 6 of the initial phase" in said[0]
        assert_same(profile, undisturbed[False], rtol=1e-4)


# -- several workers -------------------------------------------------------------------------------


def place(folder: Path, name: str) -> ObjectStorage:
    return ObjectStorage(f"{folder}/objects").under(f"checkpoints/{name}")


POINTS = (("initial phase", 5), ("static pass", 5))


def _interrupted_in_a_group(workers: Workers, folder: Path) -> None:
    rank = workers.rank
    for stage in (0, 1, 2):
        whole, _ = profile_of(workers, None, stage=stage)
        whole.write(f"{folder}/whole{stage}-{rank}.safetensors")
        for i, (phase, step) in enumerate(POINTS):
            storage = place(folder, f"zero{stage}")
            interrupt(workers, storage, phase, step, stage=stage)
            profile, said = profile_of(workers, storage, stage=stage)
            goes_on = "the profile goes on from its checkpoint: step 4 of the " + phase
            assert said == ([goes_on] if rank == 0 else [])
            profile.write(f"{folder}/again{stage}-{i}-{rank}.safetensors")
            workers.gather_objects(None)
            if rank == 0:
                remove_checkpoints(storage)
            workers.gather_objects(None)
    for phase, step in POINTS:  # left for another group
        interrupt(workers, place(folder, phase.replace(" ", "-")), phase, step)


@pytest.mark.group
def test_two_workers_go_on_under_every_zero_stage_and_one_may_go_on_for_them(
    alone: Workers, undisturbed: dict[bool, Profile], tmp_path: Path
) -> None:
    run_group(_interrupted_in_a_group, 2, tmp_path)
    for stage in (0, 1, 2):
        for rank in range(2):
            wanted = Profile.read(tmp_path / f"whole{stage}-{rank}.safetensors")
            for i in range(len(POINTS)):
                found = Profile.read(tmp_path / f"again{stage}-{i}-{rank}.safetensors")
                assert_same(found, wanted, rtol=1e-6)
    for phase, _ in POINTS:
        storage = place(tmp_path, phase.replace(" ", "-"))
        profile, said = profile_of(alone, storage)
        assert said == [f"the profile goes on from its checkpoint: step 4 of the {phase}"]
        assert_same(profile, undisturbed[False], rtol=1e-4)


def test_a_static_pass_is_saved_in_one_part_a_module_and_worker(alone: Workers) -> None:
    storage = Objects()
    interrupt(alone, storage, "static pass", 4)
    manifest = json.loads(storage[MANIFEST])
    names = [name for name in manifest["checkpoint"]["parts"] if name.startswith("rank")]
    assert {name.split("/")[0] for name in names} == {"rank0"}
    assert len(names) == 6  # no part is larger than a module's sums


# -- what is not trusted ---------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("phase", ["initial phase", "static pass"])
@pytest.mark.parametrize(
    "damage",
    [flipped, lambda data: data[:-1], lambda data: b"", lambda data: None],
    ids=["a bit flipped", "truncated", "empty", "gone"],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(
    phase: str,
    damage: Callable[[bytes], bytes | None],
    alone: Workers,
    undisturbed: dict[bool, Profile],
) -> None:
    whole = Objects()
    interrupt(alone, whole, phase, 5, SETTINGS)
    names = [MANIFEST, min(whole.list("parts")), max(whole.list("parts"))]
    for name in names:
        storage = Objects(whole)
        damaged = damage(whole[name])
        if damaged is not None:
            storage[name] = damaged
        else:
            del storage[name]
        profile, said = profile_of(alone, storage)
        if name == MANIFEST and damaged is None:
            assert said == []  # parts that no manifest names are no checkpoint
        else:
            assert len(said) == 1
            assert said[0].startswith("the checkpoint is not used: ")
            assert said[0].endswith("; the profile begins anew")
        assert_same(profile, undisturbed[False])


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"learning_rate": 1e-3}, {"top_percent": (5.0,)}, {"target_modules": ("query",)}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_computation_is_passed_over(
    change: dict[str, Any], alone: Workers
) -> None:
    storage, settings = Objects(), SETTINGS.model_copy(update=change)
    interrupt(alone, storage, "initial phase", 5)
    profile, said = profile_of(alone, storage, settings)
    assert [line.split(" (")[0] for line in said] == [
        "the checkpoint is not used: another computation has left it"
    ]
    assert_same(profile, profile_of(alone, None, settings)[0])


def test_a_manifest_that_names_things_outside_its_parts_is_passed_over(alone: Workers) -> None:
    from trainables.profiling.checkpoints import digest_of

    storage = Objects()
    interrupt(alone, storage, "initial phase", 5)
    checkpoint = storage.checkpoint()
    checkpoint["parts"] = {"state": "../../profiles/x"}
    forged = {"checkpoint": checkpoint, "sha256": digest_of(checkpoint)}
    storage[MANIFEST] = json.dumps(forged).encode()
    _, said = profile_of(alone, storage)
    assert said == ["the checkpoint is not used: manifest.json is damaged; the profile begins anew"]


def test_a_checkpoint_counts_only_once_its_manifest_is_written(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    class DyingBeforeTheThird(Objects):
        manifests = 0

        def put(self, name: str, content: bytes) -> None:
            self.manifests += name == MANIFEST
            if self.manifests == 3:
                raise Interrupted
            super().put(name, content)

    storage = DyingBeforeTheThird()
    with pytest.raises(Interrupted):
        profile_of(alone, storage)
    profile, said = profile_of(alone, Objects(storage))
    assert said == ["the profile goes on from its checkpoint: step 4 of the initial phase"]
    assert_same(profile, undisturbed[False])


def test_a_store_that_is_away_costs_one_line_and_nothing_else(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    class Away(Objects):
        def get(self, *_: Any) -> Any:
            raise StoreError("store: cannot read; start it")

        def put(self, name: str, content: bytes) -> None:
            raise StoreError("store: cannot write; start it")

    profile, said = profile_of(alone, Away())
    assert said == [
        "the checkpoint is not used: store: cannot read; start it; the profile begins anew",
        "a checkpoint cannot be saved: store: cannot write; start it; the profile goes on without",
    ]
    assert_same(profile, undisturbed[False])


def test_a_store_that_comes_back_is_used_again(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    class AwayForAWhile(Objects):
        puts = 0

        def put(self, name: str, content: bytes) -> None:
            self.puts += 1
            if 3 <= self.puts <= 5:
                raise StoreError("store: cannot write; start it")
            super().put(name, content)

    storage = AwayForAWhile()
    interrupt(alone, storage, "static pass", 3)
    assert storage.checkpoint()["phase"] == "static pass"
    profile, said = profile_of(alone, storage)
    assert said == ["the profile goes on from its checkpoint: step 2 of the static pass"]
    assert_same(profile, undisturbed[False])


# -- what lies in the store ------------------------------------------------------------------------


def test_only_the_last_checkpoint_is_kept_and_removing_leaves_nothing(alone: Workers) -> None:
    storage = Objects()
    for phase, step in (("initial phase", 7), ("static pass", 5)):
        interrupt(alone, storage, phase, step)
        parts = storage.checkpoint()["parts"].values()
        assert set(storage) == {MANIFEST, *(f"parts/{sha}.safetensors" for sha in parts)}
    remove_checkpoints(storage)
    assert not storage


def test_the_initial_phase_is_one_object_of_tensors_in_float32(alone: Workers) -> None:
    storage = Objects()
    interrupt(alone, storage, "initial phase", 7, dtype=torch.bfloat16)
    (part,) = storage.list("parts")
    tensors = load(storage[part])
    kinds = {name.rpartition("/")[2] for name in tensors}
    assert kinds == {"value", "exp_avg", "exp_avg_sq", "hits", "importance", "scored_steps"}
    trained = [tensor for name, tensor in tensors.items() if name.startswith(("adapters", "head"))]
    assert {tensor.dtype for tensor in trained} == {torch.float32}


def test_without_checkpoint_every_nothing_is_written_nor_read(
    alone: Workers, undisturbed: dict[bool, Profile]
) -> None:
    storage = Objects({MANIFEST: b"whatever"})
    never = SETTINGS.model_copy(update={"checkpoint_every": None})
    profile, said = profile_of(alone, storage, never)
    assert said == []
    assert storage == {MANIFEST: b"whatever"}
    assert_same(profile, undisturbed[False])
    assert profile.metadata == undisturbed[False].metadata


# -- less memory than the accumulators take --------------------------------------------------------


@pytest.fixture
def holding(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A process that always holds so many bytes beside the accumulators."""
    monkeypatch.setattr(static_pass, "COUNTING_BYTES", 0)
    monkeypatch.setattr(static_pass, "give_back", lambda _device: None)

    def hold(size: int) -> None:
        monkeypatch.setattr(memory, "held_bytes", lambda _device: size)

    return hold


# of two layers: query and attention.output.dense [16, 16], output.dense [16, 24], float32
SIZES = [1024, 1024, 1536] * 2


@pytest.mark.parametrize("drops", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize(("room", "passes"), [(1536, 6), (2560, 3), (3600, 2), (8000, 1)], ids=str)
def test_a_profile_within_a_memory_limit_is_the_same_bit_for_bit(
    room: int,
    passes: int,
    drops: bool,
    alone: Workers,
    holding: Callable[[int], None],
    undisturbed: dict[bool, Profile],
) -> None:
    holding(1_000_000 - 1536)
    settings = (DROPPING if drops else SETTINGS).model_copy(
        update={"memory_limit": 1_000_000 + room}
    )
    seen: list[int] = []
    profile, _ = profile_of(
        alone, None, settings,
        progress=lambda phase, _, total, *_r: seen.append(total) if phase[0] == "s" else None,
    )  # fmt: skip
    assert seen == [5 * passes] * (5 * passes)
    assert_same(profile, undisturbed[drops])
    assert profile.metadata == undisturbed[drops].metadata


def test_accumulators_of_a_group_are_given_up_before_the_next(
    alone: Workers, holding: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    holding(1_000_000 - 1536)
    held: list[int] = []

    class Watched(Accumulators):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            held.append(sum(t.numel() * t.itemsize for t in self.abs_gradient.values()))

    monkeypatch.setattr(static_pass, "Accumulators", Watched)
    profile_of(alone, None, SETTINGS.model_copy(update={"memory_limit": 1_002_560}))
    assert max(held) <= 2560
    assert sum(held) == sum(SIZES)


def test_a_limit_that_holds_no_module_is_one_line_that_says_what_is_needed(
    alone: Workers, holding: Callable[[int], None]
) -> None:
    holding(3 * 2**20)
    settings = SETTINGS.model_copy(update={"memory_limit": 2 * 2**20})
    with pytest.raises(JobError, match=r"profile.memory_limit: 2.0 MiB .* set 3.0 MiB or more"):
        profile_of(alone, None, settings)


@pytest.mark.parametrize("drops", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("step", [3, 6, 8, 15])
def test_a_pass_over_groups_of_modules_goes_on_in_the_group_it_stopped_in(
    step: int,
    drops: bool,
    alone: Workers,
    holding: Callable[[int], None],
    undisturbed: dict[bool, Profile],
) -> None:
    holding(1_000_000 - 1536)
    settings = (DROPPING if drops else SETTINGS).model_copy(update={"memory_limit": 1_002_560})
    storage = Objects()
    interrupt(alone, storage, "static pass", step, settings)
    assert len(storage.checkpoint()["facts"]["finished"]) == (step - 1) // 5
    less = settings.model_copy(update={"memory_limit": 1_001_536})  # the group does not fit now
    for again in (settings, less, SETTINGS if not drops else DROPPING):
        profile, _ = profile_of(alone, Objects(storage), again)
        assert_same(profile, undisturbed[drops])


# -- on resident workers ---------------------------------------------------------------------------


def wait_for(storage: ObjectStorage, phase: str, step: int) -> dict[str, Any]:
    """The first checkpoint of a phase that is at a step or past it."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        data = storage.get(MANIFEST)
        if data is not None:
            checkpoint = json.loads(data)["checkpoint"]
            if checkpoint["phase"] == phase and checkpoint["step"] >= step:
                return checkpoint
        time.sleep(0.002)
    raise TimeoutError(f"no checkpoint of the {phase} at {step}")


@pytest.mark.ray
def test_a_resident_worker_killed_at_three_points_goes_on_from_the_store_each_time(
    ray_cluster: None, tiny_sweep: dict[str, Any], tmp_path: Path
) -> None:
    task = build_task(TaskSettings.model_validate(tiny_sweep["task"]), tiny_sweep["base"])
    settings = ProfileSettings.model_validate(
        tiny_sweep["profile"]
        | {"batch_size": 2, "epochs": 8, "calibration_batches": "all", "checkpoint_every": 5}
    )
    storage = ObjectStorage(str(tmp_path / "store")).under("checkpoints")

    def events(workers: ResidentWorkers) -> Iterator[Event]:
        job = ProfileJob(settings=settings, checkpoints=storage)
        job_id = ray.get(workers.queue.submit.remote(job))
        yield from events_of(workers.queue, job_id)

    points = [("initial phase", 100), ("static pass", 0), ("static pass", 15)]
    killed: list[dict[str, Any]] = []
    went_on: list[tuple[str, int]] = []
    with ResidentWorkers(
        base_uri=tiny_sweep["base"], base_fingerprint=fingerprint(tiny_sweep["base"]), task=task,
        dtype="float32", deepspeed={},
        settings=GroupSettings(resources_per_worker={"CPU": 1}, max_failures=3),
        storage_path=str(tmp_path / "ray"),
    ) as workers:  # fmt: skip
        wanted = Profile.from_bytes(
            workers.run(ProfileJob(settings=settings)).profile, "undisturbed"
        )
        requeued = True
        for event in events(workers):
            if isinstance(event, Requeued):
                requeued = True
            elif isinstance(event, ProfileSteps) and requeued:
                requeued = False
                went_on.append((event.phase, event.done))
                if len(killed) < len(points):
                    killed.append(wait_for(storage, *points[len(killed)]))
                    pid = ray.get(workers.queue.groups.remote())[0].pid
                    os.kill(pid, signal.SIGKILL)
        assert isinstance(event, Done), event
        assert isinstance(event.result, ProfileResult)
        found = Profile.from_bytes(event.result.profile, "interrupted")
    assert went_on[0] == ("initial phase", 1)
    assert [phase for phase, _ in went_on[1:]] == [phase for phase, _ in points]
    for (_, done), checkpoint in zip(went_on[1:], killed, strict=True):
        assert checkpoint["step"] < done <= checkpoint["step"] + 40
    assert_same(found, wanted)
