"""Resident workers go on after a job that takes all memory, and after one that fails the device."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from conditions import BASE, TARGET_MODULES, local_ray
from numpy.typing import NDArray

from acceptance.ground import Found, Ground, drawn_split, plan_of, task_of
from search.launch.ray_environment import set_ray_environment
from spaces.errors import JobError
from trainables.bases.location import fingerprint
from trainables.bases.structure import meta_base
from trainables.resident.jobs import TrialJob
from trainables.tasks.row_share import on_share
from trainables.tasks.split import Pass
from trainables.tasks.texts import EncodedSplit
from trainables.training.settings import TrainSettings

if TYPE_CHECKING:
    from trainables.resident.groups import ResidentWorkers

NO_TOKEN = 40_000  # beyond the embedding of MiniLM, which has 30,522
FEW, MOST = 0.1, 0.9  # shares of the rows


@dataclass(frozen=True)
class Hostile(EncodedSplit):
    """Rows of which one names a token that the base has no vector for.

    From `too_many` rows in a batch on, memory is said to be out: what a rehearsal has in place of a
    device that is full.
    """

    too_many: int | None = None

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> list[Pass]:
        if self.too_many is not None and len(indices) >= self.too_many:
            raise torch.OutOfMemoryError("out of memory, as a rehearsal has it")
        return super().passes(indices, on_cpu)


@dataclass(frozen=True)
class Hospital:
    """A group of one worker, and the seed by which shares of the rows lack the one that fails."""

    workers: ResidentWorkers
    seed: int
    rows: int
    plan: bytes

    def train(self, share: float, batch_size: int) -> None:
        """A trial on a share of the rows. Raises JobError where it fails."""
        self.workers.run(
            TrialJob(
                plan=self.plan, learning_rate=1e-3, seed=0, rows=share, rows_seed=self.seed,
                train=TrainSettings(epochs=1, batch_size=batch_size),
            )
        )  # fmt: skip


@cache
def _hospital(ground: Ground) -> Hospital:
    # 10 M tokens in one batch: their activations pass the memory of any device.
    rows, tokens = (64, 16) if ground.rehearsal else (20_000, 512)
    drawn = drawn_split(rows, tokens, vocabulary=20_000)
    drawn.input_ids[0] = NO_TOKEN
    task = task_of(
        Hostile(**vars(drawn), too_many=rows // 2 if ground.rehearsal else None),
        drawn_split(16, 16, vocabulary=20_000, seed=1),
    )
    seed = next(
        seed for seed in range(1000) if 0 not in on_share(task, MOST, seed).splits["train"].rows
    )
    base = meta_base(BASE, "classification", 2, TARGET_MODULES)
    plan = plan_of("lora", base.targets)
    set_ray_environment("local")
    # Not at the top: Ray reads its environment when it is imported.
    import ray

    from trainables.resident.groups import GroupSettings, ResidentWorkers

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ground.stack.enter_context(local_ray())
    resources = {"CPU": 1} if ground.rehearsal else {"CPU": 4, "GPU": 1}
    workers = ResidentWorkers(
        base_uri=BASE, base_fingerprint=fingerprint(BASE), task=task, dtype="float32",
        deepspeed={}, settings=GroupSettings(resources_per_worker=resources),
        storage_path=str(ground.folder),
    )  # fmt: skip
    return Hospital(ground.stack.enter_context(workers), seed, rows, plan.to_bytes())


def out_of_memory(ground: Ground) -> Found:
    """Jobs served after one whose batch no device holds."""
    group = _hospital(ground)
    group.train(FEW, 64)
    said = _failing(group, MOST, group.rows)
    if "out of memory" not in said:
        raise ValueError(f"the job failed of something else: {said}")
    group.train(FEW, 64)
    return Found(1, said)


def device_assert(ground: Ground) -> Found:
    """Jobs served after one that looked up a vector that is not there, which a GPU asserts."""
    group = _hospital(ground)
    said = _failing(group, 1.0, max(1, group.rows // 40))
    group.train(FEW, 64)
    return Found(1, said)


def _failing(group: Hospital, share: float, batch_size: int) -> str:
    """Why a trial fails, in a line. Raises ValueError where it does not."""
    try:
        group.train(share, batch_size)
    except JobError as error:
        return str(error)[:300]
    raise ValueError("the job was done, where it was to fail")
