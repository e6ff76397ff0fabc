"""Who answers every row alike is told by counting the answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from trainables.tasks.collapse import PREDICTED_CLASSES, is_collapsed, predicted_classes


@pytest.mark.parametrize("classes", [2, 3, 8])
def test_the_classes_that_are_predicted_are_those_of_the_confusion_matrix(classes: int) -> None:
    rng = np.random.default_rng(classes)
    for few in range(1, classes + 1):
        right, predicted = rng.integers(0, classes, 60), rng.integers(0, few, 60)
        matrix = confusion_matrix(right, predicted, labels=range(classes))
        told = predicted_classes(predicted, right)
        assert told == {PREDICTED_CLASSES: float((matrix.sum(axis=0) > 0).sum())}
        assert is_collapsed(told) == (few == 1)


def test_where_all_rows_are_of_one_class_one_answer_is_right() -> None:
    assert predicted_classes(np.zeros(5, int), np.zeros(5, int)) == {}


@pytest.mark.parametrize(
    ("metrics", "collapsed"),
    [
        ({}, False),
        ({"accuracy": 1.0}, False),
        ({PREDICTED_CLASSES: 1}, True),
        ({PREDICTED_CLASSES: 2.0}, False),
        # A confirmation is measured on both: dev says whether it has collapsed.
        ({f"dev_{PREDICTED_CLASSES}": 2.0, f"test_{PREDICTED_CLASSES}": 1.0}, False),
        ({f"dev_{PREDICTED_CLASSES}": 1.0, f"test_{PREDICTED_CLASSES}": 2.0}, True),
        ({PREDICTED_CLASSES: 1.0, "test_accuracy": 1.0}, True),
    ],
)
def test_a_run_says_by_its_metrics_on_dev_whether_it_has_collapsed(
    metrics: dict[str, float], collapsed: bool
) -> None:
    assert is_collapsed(metrics) == collapsed
