"""What the loops need to know of a split, and the order of an epoch."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class Split(Protocol):
    """The rows of one split as a base's inputs: all that the loops need to know of them."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of each row's class in the task's labels, int64 [n]."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many positions (tokens, patches) each row takes in the base, int64 [n]."""

    def __len__(self) -> int:
        """How many rows there are."""

    def batch(self, indices: NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """The rows at `indices` as keyword arguments of the base, labels int64 [rows] among them.

        attention_mask [rows, positions] is there only where rows are padded.
        """


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `n` rows in an epoch: a permutation decided by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n)
