"""How many of a set of indices are taken, and which: the larger first, ties by lower index."""

from __future__ import annotations

from math import floor, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_BOUND = 1e6
"""A factor that no share of a matrix's rows or columns comes near: what `max_lr_scale` was before
there was one."""


def lr_scale(taken: int, total: int, most: float) -> float:
    """What an update of so few of `total` rows or columns multiplies its learning rate by.

    sqrt(total / taken), `most` at most (TASO Eq. 5).
    """
    return min(sqrt(total / taken), most)


def rounded_share(fraction: float, total: int) -> int:
    """How many of `total` a fraction stands for: floor(fraction * total + 0.5) in float64."""
    return floor(fraction * total + 0.5)


def largest(values: NDArray[Any], count: int) -> NDArray[np.int32]:
    """Indices of the `count` largest of `values` [n], sorted; ties go to the lower index.

    A partition finds the smallest value taken, so the cost is O(n) and the ties are exact. `values`
    holds no NaN.
    """
    size = values.shape[0]
    if count <= 0:
        return np.empty(0, dtype=np.int32)
    if count >= size:
        return np.arange(size, dtype=np.int32)
    smallest_taken = np.partition(values, size - count)[size - count]
    taken = values > smallest_taken
    ties = np.flatnonzero(values == smallest_taken)
    taken[ties[: count - np.count_nonzero(taken)]] = True
    return np.flatnonzero(taken).astype(np.int32)


def shortest_prefix(values: NDArray[Any], share: float) -> int:
    """How many of the largest `values` [n] it takes for at least `share` of their sum.

    In float64, of values that are not negative. The empty prefix has the share 0, so `share` 0
    takes none; values that sum to zero take none either.
    """
    # Sorted as they come, for float32 sorts twice as fast; float64 holds every one of them.
    sums = np.cumsum(np.sort(values)[::-1], dtype=np.float64)
    if share <= 0 or sums.shape[0] == 0 or sums[-1] == 0:
        return 0
    return int(np.searchsorted(sums / sums[-1], share, side="left")) + 1


def drawn(size: int, count: int, seed: tuple[int, ...]) -> NDArray[np.int32]:
    """`count` of `size` indices at random, sorted; a larger count holds the smaller one's."""
    return largest(np.random.default_rng(seed).random(size), count)
