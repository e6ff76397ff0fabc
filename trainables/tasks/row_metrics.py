"""Metrics that are made of numbers that each row has by itself: its statistics.

A metric is a function of the rows' statistics [n, k], most of them of the sums alone: so it can be
had of any choice of rows, in which some come several times, without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Statistics = NDArray[np.float64]


@dataclass(frozen=True)
class RowMetric:
    """A number that says how well a split is predicted.

    `rows` makes the statistics float64 [n, k] of what is right and what is predicted. `of_sums`
    makes the metric [...] of their sums over rows [..., k]; a metric that is no function of sums
    has `of_rows`, of [n, k].
    """

    name: str
    mode: Literal["max", "min"]
    rows: Callable[..., Statistics]
    of_sums: Callable[[Statistics], NDArray[np.float64]] | None = None
    of_rows: Callable[[Statistics], float] | None = None

    def of(self, statistics: Statistics) -> float:
        """The metric of all rows [n, k] together."""
        if self.of_sums is not None:
            return float(self.of_sums(statistics.sum(axis=0)))
        assert self.of_rows is not None, "it has one of the two"
        return self.of_rows(statistics)


def measured_on(name: str, statistics: Statistics) -> float:
    """The metric of that name of rows with these statistics."""
    return ROW_METRICS[name].of(statistics)


def mean(sums: Statistics) -> NDArray[np.float64]:
    """Of (value, weight): the mean value; NaN where nothing is weighed."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _moments(labels: NDArray[Any], predicted: NDArray[Any]) -> Statistics:
    # About the labels' mean, so that large numbers lose no digits in their squares.
    centre = labels.mean()
    x, y = labels - centre, predicted - centre
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def _pearson(sums: Statistics) -> NDArray[np.float64]:
    """Correlation; NaN where the labels are one number, 0 where the predictions are."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    with np.errstate(invalid="ignore", divide="ignore"):
        value = (n * xy - x * y) / np.sqrt(np.maximum(spread_x, 0) * np.maximum(spread_y, 0))
    value = np.where(_no_spread(spread_y, n * yy), 0.0, value)
    return np.where(_no_spread(spread_x, n * xx), np.nan, value)


def _no_spread(spread: NDArray[Any], of: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a spread is nothing but rounding."""
    return np.asarray(spread <= 1e-12 * np.maximum(of, 1e-300))


def _pairs(labels: NDArray[Any], predicted: NDArray[Any]) -> Statistics:
    return np.stack([labels, predicted], axis=-1)


def _spearman(rows: Statistics) -> float:
    """Correlation of the ranks, equal numbers sharing theirs; as `_pearson` where one is alike."""
    from scipy.stats import rankdata

    ranks = [rankdata(column) for column in rows.T]
    return float(_pearson(_moments(*ranks).sum(axis=0)))


def _squares(labels: NDArray[Any], predicted: NDArray[Any]) -> Statistics:
    return np.stack([(predicted - labels) ** 2, np.ones_like(labels)], axis=-1)


ROW_METRICS: Mapping[str, RowMetric] = {
    metric.name: metric
    for metric in (
        RowMetric("pearson", "max", _moments, of_sums=_pearson),
        RowMetric("spearman", "max", _pairs, of_rows=_spearman),
        RowMetric("mse", "min", _squares, of_sums=mean),
    )
}
