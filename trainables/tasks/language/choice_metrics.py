"""How often the likeliest option is the right one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainables.tasks.language.option_scores import ChoiceRows

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def hits(scores: Floats, right: Counts, divisor: Counts | None = None) -> Floats:
    """1 for each row whose likeliest option is the right one, else 0: float64 [n].

    `scores` [n, K] are sums of log-likelihood, NaN beyond the options of a row, and are divided by
    `divisor` [n, K]; `right` [n] are the indices of the right options. Of options with one score
    the first is taken, as lm-eval does.
    """
    return np.asarray(likeliest(scores, divisor) == right, dtype=np.float64)


def likeliest(scores: Floats, divisor: Counts | None = None) -> Counts:
    """The first of the options with the highest score, int64 [n], divided as in `hits`."""
    scores = _divided(scores, divisor)
    best: Counts = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    return best


def _divided(scores: Floats, divisor: Counts | None) -> Floats:
    return scores if divisor is None else scores / np.maximum(divisor, 1)


def scores_by(metric: str, scores: Floats, rows: ChoiceRows) -> Floats:
    """The scores that a metric judges by, float64 [n, K]; those of a metric of the user's own as
    they are."""
    return _divided(scores, _divisors(rows).get(metric))


def likeliest_by(metric: str, scores: Floats, rows: ChoiceRows) -> Counts:
    """The option of each row that a metric judges by, int64 [n]."""
    return likeliest(scores_by(metric, scores, rows))


def hits_by_metric(scores: Floats, rows: ChoiceRows) -> Mapping[str, Floats]:
    """Metric -> `hits` of its own way to judge an option.

    By the sum of log-likelihood, which is lm-eval's `acc`; per token of the option; or per byte of
    its UTF-8, which is lm-eval's `acc_bytes`. Its `acc_norm` divides by characters, which is the
    same where all are ASCII.
    """
    return {name: hits(scores, rows.right, by) for name, by in _divisors(rows).items()}


def _divisors(rows: ChoiceRows) -> Mapping[str, Counts | None]:
    return {
        "accuracy": None,
        "accuracy_per_token": rows.token_counts,
        "accuracy_per_byte": rows.byte_counts,
    }
