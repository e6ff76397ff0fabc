"""Metrics of a task, computed with scikit-learn from labels and logits.

The settings name metrics, so scikit-learn is imported where it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Metric:
    """A number that says how well a split is predicted.

    `compute(labels, logits)` takes int64 class indices [n] and logits [n, classes]; `mode` is the
    better direction.
    """

    name: str
    compute: Callable[[Labels, Logits], float]
    mode: Literal["max", "min"]

    def __call__(self, labels: Labels, logits: Logits) -> float:
        """The metric of `logits` [n, classes] against `labels` [n]."""
        return self.compute(labels, logits)


def _accuracy(labels: Labels, logits: Logits) -> float:
    """Share of rows whose largest logit is that of their class."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, logits.argmax(axis=-1)))


def _f1(labels: Labels, logits: Logits) -> float:
    """F1 of the second class of two (1 of 0 and 1; yes of no and yes); macro F1 beyond two."""
    if logits.shape[-1] > 2:
        return _macro_f1(labels, logits)
    return _f1_score(labels, logits, pos_label=1, average="binary")


def _macro_f1(labels: Labels, logits: Logits) -> float:
    """Mean of the F1 of each class, every class of the task counted, also one not seen here."""
    return _f1_score(labels, logits, labels=np.arange(logits.shape[-1]), average="macro")


def _f1_score(truth: Labels, logits: Logits, **how: Any) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, logits.argmax(axis=-1), zero_division=0.0, **how))


def _matthews(labels: Labels, logits: Logits) -> float:
    """Matthews correlation coefficient; 0 where the predictions or the labels are one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, logits.argmax(axis=-1)))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, "max"),
        Metric("f1", _f1, "max"),
        Metric("macro_f1", _macro_f1, "max"),
        Metric("matthews", _matthews, "max"),
    )
}
