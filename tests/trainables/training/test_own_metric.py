"""A metric of the user's own that gives no number fails the job, on all workers alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.trainables.conftest import tiny_bert, tiny_task
from tests.trainables.thread_workers import of_workers
from trainables.adaptations.blocks import BlockAdaptation, plain_lora
from trainables.bases.structure import resolve_targets
from trainables.engine.workers import Workers
from trainables.training.evaluate import OwnMetricError, evaluate

METRIC = "mine:metric"
ROWS = 10


def measured(metric: Callable[..., Any], workers: Workers) -> float:
    """What a metric gives of ten rows of dev."""
    task = replace(tiny_task(dev=ROWS), metric=METRIC, own={METRIC: metric})
    model = tiny_bert()
    targets = resolve_targets(model, ("classifier",), ("query",))
    with BlockAdaptation(model, plain_lora(targets, 2, 4), seed=0, head={}) as adaptation:
        return evaluate(model, adaptation, task, "dev", workers)[METRIC]


def raising(answers: Any, references: Any) -> float:
    raise RuntimeError("gloo has nothing to do with it")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (raising, r"failed \(RuntimeError: .*\); correct it"),
        (lambda *_: "many", r"failed \(ValueError: .*\); correct it"),
        (lambda *_: None, "gave no number"),
        (lambda *_: float("nan"), "gave no number"),
        (lambda *_: -np.inf, "gave no number"),
        (lambda *_: [1.0] * (ROWS - 2) + [None, np.inf], "gave no number for 2 of 10 rows"),
        (lambda *_: [1.0] * (ROWS - 1), r"gave \[9\] numbers for 10 rows"),
    ],
)
def test_a_metric_that_gives_no_number_says_so_in_one_line(
    metric: Callable[..., Any], said: str, alone: Workers
) -> None:
    with pytest.raises(OwnMetricError, match=rf"^task\.metric: {METRIC} {said}") as caught:
        measured(metric, alone)
    assert "\n" not in str(caught.value)


def test_one_that_fails_on_one_worker_fails_on_all_of_them() -> None:
    def told(workers: Workers) -> str:
        with pytest.raises(OwnMetricError) as caught:
            measured(raising if workers.rank == 1 else lambda *_: 0.25, workers)
        return str(caught.value)

    one, other = of_workers(2, told)
    assert one == other
    assert "RuntimeError" in one


def test_numbers_are_the_metric_or_its_mean(alone: Workers) -> None:
    assert measured(lambda *_: 0.25, alone) == 0.25
    assert measured(lambda *_: range(ROWS), alone) == 4.5
