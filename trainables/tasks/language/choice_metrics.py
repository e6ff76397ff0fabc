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
    if divisor is not None:
        scores = scores / np.maximum(divisor, 1)
    return np.asarray(likeliest(scores) == right, dtype=np.float64)


def likeliest(scores: Floats) -> Counts:
    """The first of the options with the highest score, int64 [n]."""
    best: Counts = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    return best


def hits_by_metric(scores: Floats, rows: ChoiceRows) -> Mapping[str, Floats]:
    """Metric -> `hits` of its own way to judge an option.

    By the sum of log-likelihood, which is lm-eval's `acc`; per token of the option; or per byte of
    its UTF-8, which is lm-eval's `acc_bytes`. Its `acc_norm` divides by characters, which is the
    same where all are ASCII.
    """
    return {
        "accuracy": hits(scores, rows.right),
        "accuracy_per_token": hits(scores, rows.right, rows.token_counts),
        "accuracy_per_byte": hits(scores, rows.right, rows.byte_counts),
    }
