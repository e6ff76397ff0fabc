"""A job that is broken off leaves nothing behind, least of all where there was no memory left."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trainables.conftest import head_of, hearing, tiny_bert, tiny_task
from tests.trainables.training.test_finetune import SETTINGS, lora, reports_of
from trainables.adaptations.blocks import BlockAdaptation
from trainables.engine.workers import CancelledError, Workers
from trainables.training.finetune import finetune


def no_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def noting(done: list[str], name: str, work: Callable[[], None]) -> Callable[[], None]:
    def noted() -> None:
        done.append(name)
        work()

    return noted


def at_a_step(engine: Any, adaptation: BlockAdaptation) -> None:
    engine.module.register_forward_hook(no_memory)


def as_it_ends(engine: Any, adaptation: BlockAdaptation) -> None:
    vars(adaptation)["end_stage"] = no_memory


def and_the_engine_too(engine: Any, adaptation: BlockAdaptation) -> None:
    at_a_step(engine, adaptation)

    destroy = engine.destroy

    def destroy_and_fail() -> None:
        destroy()
        raise RuntimeError("it cannot be destroyed")

    engine.destroy = destroy_and_fail


@pytest.mark.parametrize("fail", [at_a_step, as_it_ends, and_the_engine_too])
def test_nothing_of_a_job_that_ran_out_of_memory_stays(
    alone: Workers, fail: Callable[[Any, BlockAdaptation], None]
) -> None:
    model = tiny_bert()
    before = reports_of(model, lora(model), alone)
    held: list[weakref.ref[Any]] = []
    done: list[str] = []

    def job() -> None:
        def keep(step: int, engine: Any, schedule: Any) -> None:
            if step == 2:
                held.extend(weakref.ref(each) for each in engine.module.parameters())
                held.append(weakref.ref(engine))
                for of, name in ((engine, "destroy"), (adaptation, "detach")):
                    vars(of)[name] = noting(done, name, getattr(of, name))
                fail(engine, adaptation)

        with BlockAdaptation(model, lora(model), seed=3, head=head_of(model)) as adaptation:
            finetune(
                model, adaptation, tiny_task(), SETTINGS, learning_rate=1e-2, seed=3,
                workers=alone, observer=hearing(keep=keep),
            )  # fmt: skip

    try:
        job()
    except torch.OutOfMemoryError as failure:
        assert "2.00 GiB" in str(failure)  # noqa: PT017 (what is raised must not be kept)
    gc.collect()
    assert done[:2] == ["destroy", "detach"]
    assert len(held) > 3
    assert [each() for each in held if each() is not None] == []
    assert reports_of(model, lora(model), alone) == before


def test_a_stage_that_is_cancelled_is_not_frozen(alone: Workers) -> None:
    model = tiny_bert()
    with BlockAdaptation(model, lora(model), seed=3, head=head_of(model)) as adaptation:
        with pytest.raises(CancelledError):
            finetune(
                model, adaptation, tiny_task(), SETTINGS, learning_rate=1e-2, seed=3,
                workers=alone, observer=hearing(should_stop=lambda: True),
            )  # fmt: skip
        assert adaptation.weights() == {}
