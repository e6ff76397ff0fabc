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

    `compute(labels, logits, positive)` takes int64 class indices [n], logits [n, classes] and the
    index of the positive class of two; `mode` is the better direction. A metric that is
    `over_classes` is a mean over the classes that occur; one that `needs_two_classes` is not
    defined on rows of one class.
    """

    name: str
    compute: Callable[[Labels, Logits, int], float]
    mode: Literal["max", "min"]
    over_classes: bool = False
    needs_two_classes: bool = False

    def __call__(self, labels: Labels, logits: Logits, positive: int = 1) -> float:
        """The metric of `logits` [n, classes] against `labels` [n]."""
        return self.compute(labels, logits, positive)


def _accuracy(labels: Labels, logits: Logits, positive: int) -> float:
    """Share of rows whose largest logit is that of their class."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, logits.argmax(axis=-1)))


def _f1(labels: Labels, logits: Logits, positive: int) -> float:
    """F1 of the positive class of two; macro F1 beyond two."""
    if logits.shape[-1] > 2:
        return _macro_f1(labels, logits, positive)
    return _f1_score(labels, logits, pos_label=positive, average="binary")


def _macro_f1(labels: Labels, logits: Logits, positive: int) -> float:
    """Mean of the F1 of each class that a row has or is predicted to have."""
    return _f1_score(labels, logits, average="macro")


def _f1_score(truth: Labels, logits: Logits, **how: Any) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, logits.argmax(axis=-1), zero_division=0.0, **how))


def _matthews(labels: Labels, logits: Logits, positive: int) -> float:
    """Matthews correlation coefficient; 0 where the predictions or the labels are one class."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, logits.argmax(axis=-1)))


def _roc_auc(labels: Labels, logits: Logits, positive: int) -> float:
    """Area under the ROC curve; beyond two classes the mean of each that occurs against the rest.

    The score of a class is its probability by softmax, of which only the order counts: its
    logarithm, or of two classes the difference of logits, which no rounding makes equal. NaN where
    a logit is, or where all rows are of one class.
    """
    from scipy.special import log_softmax
    from sklearn.metrics import roc_auc_score

    occurring = np.unique(labels)
    if len(occurring) < 2 or not np.isfinite(logits).all():
        return float("nan")
    if logits.shape[-1] == 2:
        return float(roc_auc_score(labels == 1, logits[:, 1] - logits[:, 0]))
    scores = log_softmax(logits.astype(np.float64), axis=-1)
    return float(np.mean([roc_auc_score(labels == each, scores[:, each]) for each in occurring]))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, "max"),
        Metric("f1", _f1, "max", over_classes=True),
        Metric("macro_f1", _macro_f1, "max", over_classes=True),
        Metric("matthews", _matthews, "max"),
        Metric("roc_auc", _roc_auc, "max", over_classes=True, needs_two_classes=True),
    )
}
