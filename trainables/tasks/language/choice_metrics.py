"""How often the likeliest option is the right one.

Each function takes float64 [n, K] scores (sums of log-likelihood), int64 [n, K] tokens and bytes of
the options (not of what is put before them), and int64 [n] indices of the right ones. Places beyond
the options of a row hold NaN, and 0. Of options with one score the first is taken, as lm-eval does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Counts = NDArray[np.int64]


def accuracy(scores: Scores, tokens: Counts, bytes_: Counts, right: Counts) -> float:
    """By the sum of log-likelihood: lm-eval's `acc`."""
    return _share(scores, right)


def accuracy_per_token(scores: Scores, tokens: Counts, bytes_: Counts, right: Counts) -> float:
    """By log-likelihood per token."""
    return _share(scores / np.maximum(tokens, 1), right)


def accuracy_per_byte(scores: Scores, tokens: Counts, bytes_: Counts, right: Counts) -> float:
    """By log-likelihood per byte of the option's UTF-8: lm-eval's `acc_bytes`.

    lm-eval's `acc_norm` divides by characters, which is the same where all are ASCII.
    """
    return _share(scores / np.maximum(bytes_, 1), right)


def likeliest(scores: Scores) -> Counts:
    """The first of the options with the highest score, int64 [n]."""
    best: Counts = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
    return best


def _share(scores: Scores, right: Counts) -> float:
    return float(np.mean(likeliest(scores) == right))
