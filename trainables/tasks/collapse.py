"""Whether a model answers every row of a split alike: then it has collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREDICTED_CLASSES = "predicted_classes"
"""Metric of a run: how many different classes are predicted over a split."""


def predicted_classes(
    predicted: NDArray[np.integer[Any]], right: NDArray[np.integer[Any]]
) -> dict[str, float]:
    """{`PREDICTED_CLASSES`: how many different classes int [n] are predicted}.

    Nothing where all rows are of one class, `right` int [n]: there one answer for all is right.
    """
    if len(np.unique(right)) < 2:
        return {}
    return {PREDICTED_CLASSES: float(len(np.unique(predicted)))}


def is_collapsed(metrics: Mapping[str, Any]) -> bool:
    """Whether the metrics of an epoch, or of a run, say that one class alone was predicted on dev.

    Those of a job that was measured on test too have those of dev as `dev_<metric>`. A run that
    does not say how many classes were predicted is not called so.
    """
    told = metrics.get(f"dev_{PREDICTED_CLASSES}", metrics.get(PREDICTED_CLASSES))
    return told is not None and float(told) == 1.0
