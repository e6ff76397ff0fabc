"""What the loops need to know of a split, and how rows go through a base."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.engine.workers import Workers

if TYPE_CHECKING:
    from trainables.tasks.work import Work

Pass = dict[str, Any]
"""One forward pass: keyword arguments of the base, and what is taken out before it is called.

That is `labels` [targets]; `places` [targets], in logits.flatten(0, 1), where not every output is a
target; and `is_token` bool [lines, positions], where packed lines are filled up."""


class Split(Protocol):
    """The rows of one split as a base's inputs: all that the loops need to know of them."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many positions (tokens, patches) each row takes in the base, int64 [n]."""

    @property
    def targets(self) -> NDArray[np.int64]:
        """How many targets each row has, over which a loss is summed, int64 [n]."""

    def __len__(self) -> int:
        """How many rows there are."""

    def batch(self, indices: NDArray[np.integer[Any]]) -> Pass:
        """The rows at `indices` in one pass, padded where they differ in length.

        attention_mask [rows, positions] is there only where rows are padded.
        """

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Sequence[Pass]:
        """The rows at `indices` in as many passes as cost least; no number depends on which."""

    def work(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Work:
        """What the passes of the rows at `indices` put through a base."""

    def measuring_work(self, on_cpu: bool) -> Work:
        """What measuring the split puts through a base."""

    def first(self, rows: int) -> Split:
        """At most so many rows: as rows lie in content order, a sample of all."""


def labels_of(split: Split) -> NDArray[Any]:
    """What is right for each row [n] of a task that a fresh head answers: the index of its class,
    or its number."""
    labels: NDArray[Any] = split.labels  # type: ignore[attr-defined]
    return labels


def pinned(batch: Pass) -> Pass:
    """The batch with its tensors in memory that a GPU can read while the host goes on."""
    return {
        key: value.pin_memory() if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def to_device(batch: Mapping[str, Any], workers: Workers) -> Pass:
    """The batch with its tensors on the worker's device; the host does not wait for pinned ones."""
    return {
        key: value.to(workers.device, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in batch.items()
    }


def outputs_of(model: Any, batch: Pass) -> torch.Tensor:
    """What a base gives for the targets of a pass without its labels: [targets, outputs].

    No keys and values are kept of its tokens, as a base does that may have to write on.
    """
    places = batch.pop("places", None)
    batch.pop("is_token", None)
    given = {"use_cache": False, **batch} if _may_keep_keys(type(model).forward) else batch
    logits: torch.Tensor = model(**given).logits
    return logits if places is None else logits.flatten(0, 1)[places]


@cache
def _may_keep_keys(forward: Callable[..., Any]) -> bool:
    """Whether a base's forward is told whether to keep the keys and values of its tokens."""
    return "use_cache" in inspect.signature(forward).parameters


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `n` rows in an epoch: a permutation decided by seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(n)
