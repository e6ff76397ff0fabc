"""What a model that has learned nothing would be measured to be, found by trying every answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainables.tasks.constant_answer import constant_class
from trainables.tasks.metrics import METRICS


def task_of(labels: list[int], classes: int, metric: str = "accuracy") -> Any:
    """A task whose dev split has these labels; classes are called a, b, c, ..."""
    return SimpleNamespace(
        labels=tuple(chr(ord("a") + i) for i in range(classes)),
        metric=metric,
        splits={"dev": SimpleNamespace(labels=np.array(labels, np.int64))},
        positive=1,
    )


def test_accuracy_is_the_share_of_the_largest_class() -> None:
    found = constant_class(task_of([0] * 33 + [1] * 47, 2), "dev")
    assert found is not None
    assert (found.value, found.answer) == (47 / 80, "b")
    assert found.in_words == "0.5875, always 'b'"
    assert found.is_beaten_by(0.6)
    assert not found.is_beaten_by(47 / 80)


@pytest.mark.parametrize("metric", [name for name, each in METRICS.items() if each.mode == "max"])
@pytest.mark.parametrize(("classes", "rows"), [(2, 9), (2, 40), (3, 50), (7, 60)])
def test_no_answer_that_is_the_same_for_every_row_is_better(
    metric: str, classes: int, rows: int
) -> None:
    draw = np.random.default_rng(rows)
    labels = draw.integers(0, classes, rows) * (draw.random(rows) > 0.4)
    found = constant_class(task_of(list(labels), classes, metric), "dev")
    assert found is not None
    answers = np.eye(classes)
    tried = [METRICS[metric](labels, np.tile(answers[c], (rows, 1))) for c in range(classes)]
    assert found.value == pytest.approx(max(tried))
    if metric == "matthews":
        assert found.value == 0


def test_the_f1_of_two_classes_is_best_where_all_are_called_positive() -> None:
    found = constant_class(task_of([0] * 7 + [1] * 3, 2, "f1"), "dev")
    assert found is not None
    assert found.value == pytest.approx(2 * 3 / (3 + 10))
    assert found.answer == "b"
