"""A job that is to end does not wait for a long split to be written."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from tests.trainables.conftest import hearing
from tests.trainables.tasks.kinds.examples import MadeKind, make_kind
from tests.trainables.thread_workers import of_workers
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import CancelledError, Workers
from trainables.tasks.task import Task
from trainables.training.finetune import finetune
from trainables.training.settings import TrainSettings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeKind:
    return make_kind("generation on llama", tmp_path_factory.mktemp("kind"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each batch that is written."""
    found: list[int] = []
    generate = GenerationMixin.generate

    def counted(self: Any, ids: torch.Tensor, **given: Any) -> Any:
        found.append(len(ids))
        return generate(self, ids, **given)

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    return found


def row_by_row(made: MadeKind, base: Any) -> Task:
    """The task, of which each row is written in a batch of its own."""
    section = made.settings.generation.model_copy(update={"batch_tokens": 1})
    return made.with_(generation=section.model_dump()).fitted(base.model)


@torch.no_grad()
def test_what_one_worker_has_heard_ends_the_writing_of_all(
    made: MadeKind, batches: list[int]
) -> None:
    base = made.base()
    task = row_by_row(made, base)

    def write(workers: Workers) -> str:
        model, asked = copy.deepcopy(base.model).eval(), iter([False, False, True])
        if workers.rank == 1:
            workers = replace(workers, should_stop=lambda: next(asked))
        try:
            task.its_kind.readings(model, task, "dev", workers)
        except CancelledError:
            return "cancelled"
        return "done"

    assert of_workers(2, write) == ["cancelled", "cancelled"]
    rows = len(task.splits["dev"])
    assert batches == [1] * ((rows + 1) // 2 + 2)  # all of the first's share, two of the other's


def test_a_training_job_stops_while_its_dev_is_written(
    made: MadeKind, batches: list[int], alone: Workers
) -> None:
    base = made.base()
    task, steps = row_by_row(made, base), list[int]()
    rows = len(task.splits["train"])
    hears = hearing(on_step=steps.append, should_stop=lambda: len(batches) == 3)
    targets = resolve_targets(base.model, base.head_modules, ["q_proj"])
    with (
        BlockAdaptation(base.model, plain_lora(targets, 2, 4), seed=0, head={}) as adaptation,
        pytest.raises(CancelledError),
    ):
        finetune(
            base.model, adaptation, task, TrainSettings(epochs=1, batch_size=rows),
            learning_rate=1e-3, seed=0, workers=alone, observer=hears,
        )  # fmt: skip
    assert (steps, batches) == ([1], [1, 1, 1])
