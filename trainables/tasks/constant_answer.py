"""What a model that has learned nothing would be measured to be: one answer for every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainables.tasks.metrics import METRICS
from trainables.tasks.task import Task

CANDIDATES = 20
"""So many of the largest classes are tried: with few classes all of them."""


@dataclass(frozen=True)
class ConstantAnswer:
    """The metric of the best answer that is the same for every row of a split.

    `answer` is the class that it names; None where it is no class: for a loss it is the classes'
    shares.
    """

    split: str
    metric: str
    value: float
    answer: str | None
    mode: Literal["max", "min"]

    @property
    def in_words(self) -> str:
        """The value, and of what: "0.5875, always 'negative'"."""
        of = "the classes' shares" if self.answer is None else f"always {self.answer!r}"
        return f"{self.value:.4g}, {of}"

    def is_beaten_by(self, value: float) -> bool:
        """Whether a value of the metric is better; an equal one is not."""
        return value > self.value if self.mode == "max" else value < self.value


def constant_answer(task: Task, split: str, metric: str) -> ConstantAnswer | None:
    """The best constant answer for a split, by the task's metric or by the split's loss.

    For accuracy it is the largest class, with its share. The loss is the cross-entropy of the
    classes' shares. None for anything else, such as a time, and for a split without rows.
    """
    labels = task.splits[split].labels
    sizes = np.bincount(labels, minlength=task.num_labels)
    if not len(labels):
        return None
    if metric == f"{split}_loss":
        shares = sizes[sizes > 0] / len(labels)
        return ConstantAnswer(split, metric, float(-(shares * np.log(shares)).sum()), None, "min")
    if metric != task.metric:
        return None
    measure = METRICS[metric]
    best: ConstantAnswer | None = None
    # Where only the order of rows counts, all constant answers are the same.
    tried = 1 if measure.needs_two_classes else CANDIDATES
    for index in np.argsort(-sizes, kind="stable")[:tried]:
        one = np.zeros(task.num_labels)
        one[index] = 1.0
        value = measure(labels, np.broadcast_to(one, (len(labels), task.num_labels)), task.positive)
        if np.isnan(value):  # not defined on these rows, whatever is answered
            return None
        if best is None or best.is_beaten_by(value):
            best = ConstantAnswer(split, metric, value, task.labels[index], measure.mode)
    return best
