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

    `of_sums` makes the metric [...] of the sums of statistics over rows [..., k]; a metric that is
    no function of sums has `of_rows`, of [n, k].
    """

    name: str
    mode: Literal["max", "min"]
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


def weighted(values: NDArray[Any], weights: NDArray[Any]) -> Statistics:
    """The statistics [n, 2] of a weighted mean: sums [n] of what is averaged, and their weights."""
    return np.stack([values, weights], axis=-1).astype(np.float64)


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


def _perplexity(sums: Statistics) -> NDArray[np.float64]:
    """exp of the mean loss of a target."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(mean(sums)))


def _macro_f1(sums: Statistics) -> NDArray[np.float64]:
    """The mean F1 of the classes that occur or are predicted; of (hits, predicted, true) [3, C]."""
    hits, predicted, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    f1 = 2 * hits / np.maximum(predicted + true, 1)
    return np.asarray(f1.sum(axis=-1) / np.maximum((predicted + true > 0).sum(axis=-1), 1))


def _bleu(sums: Statistics) -> NDArray[np.float64]:
    """sacrebleu's corpus BLEU, smoothed as sacrebleu smooths where nothing is said.

    Of the lengths of what is written and of what is right, and of each order up to 4 the n-grams
    that are right and all of them.
    """
    from sacrebleu.metrics import BLEU

    def of_one(of: Statistics) -> float:
        written, right, *counts = of.astype(int).tolist()
        half = len(counts) // 2
        score = BLEU.compute_bleu(counts[:half], counts[half:], written, right, smooth_method="exp")
        return float(score.score)

    return np.apply_along_axis(lambda of: np.array(of_one(of)), -1, sums)


def _squares(labels: NDArray[Any], predicted: NDArray[Any]) -> Statistics:
    return weighted((predicted - labels) ** 2, np.ones_like(labels))


MEAN = "mean"
"""The mean of the rows' values: a metric of the user's own, whatever it is called."""
_MEANS = (
    "accuracy", "accuracy_per_token", "accuracy_per_byte", "exact_match", "rouge1", "rouge2",
    "rougeL",
)  # fmt: skip

ROW_METRICS: Mapping[str, RowMetric] = {
    metric.name: metric
    for metric in (
        RowMetric("pearson", "max", of_sums=_pearson),
        RowMetric("spearman", "max", of_rows=_spearman),
        RowMetric(MEAN, "max", of_sums=mean),
        RowMetric("mse", "min", of_sums=mean),
        RowMetric("loss", "min", of_sums=mean),
        RowMetric("perplexity", "min", of_sums=_perplexity),
        *(RowMetric(name, "max", of_sums=mean) for name in _MEANS),
        RowMetric("f1", "max", of_sums=_macro_f1),
        RowMetric("bleu", "max", of_sums=_bleu),
    )
}
"""Those of every kind that has no classes. What makes their statistics is the kind's own."""


def number_statistics(metric: str, labels: NDArray[Any], predicted: NDArray[Any]) -> Statistics:
    """Of a regression's metric: what is right [n] and what is predicted [n]."""
    made = {"pearson": _moments, "spearman": _pairs, "mse": _squares}
    return made[metric](labels, predicted)
