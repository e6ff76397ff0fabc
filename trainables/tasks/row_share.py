"""A share of a task's training rows: which they are, and the task that trains on them alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError
from trainables.tasks.drawing import nested_order
from trainables.tasks.split import Pass, Split, labels_of

if TYPE_CHECKING:
    from trainables.tasks.task import Task
    from trainables.tasks.work import Work


@dataclass(frozen=True)
class RowsOfSplit(Split):
    """Some rows of a split, by their indices `rows` int64 [n] in it; nothing is copied."""

    split: Split
    rows: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many positions each row takes in the base, int64 [n]."""
        return self.split.lengths[self.rows]

    @property
    def targets(self) -> NDArray[np.int64]:
        """How many targets each row has, int64 [n]."""
        return self.split.targets[self.rows]

    @property
    def labels(self) -> NDArray[Any]:
        """What is right for each row [n] of a task that a fresh head answers."""
        return labels_of(self.split)[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: NDArray[np.integer[Any]]) -> Pass:
        """The rows at `indices` in one pass."""
        return self.split.batch(self.rows[indices])

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Sequence[Pass]:
        """The rows at `indices` in as many passes as cost least."""
        return self.split.passes(self.rows[indices], on_cpu)

    def work(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Work:
        """What the passes of the rows at `indices` put through a base."""
        return self.split.work(self.rows[indices], on_cpu)

    def measuring_work(self, on_cpu: bool) -> Work:
        """What one pass over the rows in their order puts through a base."""
        return self.split.work(self.rows, on_cpu)

    def first(self, rows: int) -> RowsOfSplit:
        """At most so many rows."""
        return replace(self, rows=self.rows[:rows])


def rows_of_share(rows: int, share: float) -> int:
    """How many of `rows` rows a share of them is: the nearest number, and at least one."""
    return max(1, math.floor(rows * share + 0.5))


def on_share(task: Task, share: float, seed: int) -> Task:
    """The task with a share of its training rows; what it is measured on stays whole.

    Of each class it has its share, and at least one row, as far as there are so many. The rows of a
    share are among those of a larger one. They are chosen by `seed` and the share alone.
    """
    if share >= 1.0:
        return task
    split = task.splits["train"]
    groups = labels_of(split) if task.labels else np.zeros(len(split), np.int64)
    order = nested_order(groups, seed)[: rows_of_share(len(split), share)]
    return replace(task, splits={**task.splits, "train": RowsOfSplit(split, np.sort(order))})


def check_shares(task: Task, shares: Sequence[float], batch_size: int, key: str) -> None:
    """Raise ConfigError where a share of the training rows is too small to train on.

    `key` names the shares, which rise.
    """
    rows = len(task.splits["train"])
    counts = [rows_of_share(rows, share) for share in shares]
    share, count = shares[0], counts[0]
    short = f"{key}: {share:g} of {rows:,} rows is {count:,}, "
    if count < batch_size:
        raise ConfigError(
            f"{short}less than one batch of {batch_size} (train.batch_size); "
            f"{_remedy(batch_size, rows)}"
        )
    if count < len(task.labels):
        raise ConfigError(
            f"{short}fewer than the {len(task.labels)} classes; {_remedy(len(task.labels), rows)}"
        )
    for low, high, count, more in zip(shares, shares[1:], counts, counts[1:], strict=False):
        if count == more:
            raise ConfigError(
                f"{key}: {low:g} and {high:g} of {rows:,} rows are {count:,} both; leave one out"
            )


def _remedy(least: int, rows: int) -> str:
    share = math.ceil(100 * least / rows) / 100
    return f"begin with {share:g} or more" if share < 1 else "set search.fidelity: null"
