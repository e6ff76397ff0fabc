"""What a model that has learned nothing would be measured to be: one answer for every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainables.tasks.metrics import METRICS
from trainables.tasks.split import labels_of
from trainables.tasks.task import Task

CANDIDATES = 20
"""So many of the largest classes are tried: with few classes all of them."""


@dataclass(frozen=True)
class ConstantAnswer:
    """The metric of the best answer that is the same for every row of a split: its `answer`.

    Of a suite it is the mean, each member with an answer of its own, and `answer` is None.
    """

    split: str
    metric: str
    value: float
    answer: str | None
    mode: Literal["max", "min"]

    @property
    def in_words(self) -> str:
        """The value, and of what: "0.5875, always 'negative'"."""
        if self.answer is None:
            return f"{self.value:.4g}, one answer for each set"
        return f"{self.value:.4g}, always {self.answer!r}"

    def is_beaten_by(self, value: float) -> bool:
        """Whether a value of the metric is better; an equal one is not."""
        return value > self.value if self.mode == "max" else value < self.value


def constant_class(task: Task, split: str) -> ConstantAnswer | None:
    """The best class to answer for every row of a split, by the task's metric.

    For accuracy it is the largest class, with its share. None where the metric is not defined.
    """
    labels, measure = labels_of(task.splits[split]), METRICS[task.metric]
    sizes = np.bincount(labels, minlength=len(task.labels))
    best: ConstantAnswer | None = None
    # Where only the order of rows counts, all constant answers are the same.
    tried = 1 if measure.needs_two_classes else CANDIDATES
    for index in np.argsort(-sizes, kind="stable")[:tried]:
        one = np.zeros(len(task.labels))
        one[index] = 1.0
        value = measure(labels, np.broadcast_to(one, (len(labels), len(one))), task.positive)
        if np.isnan(value):  # not defined on these rows, whatever is answered
            return None
        if best is None or best.is_beaten_by(value):
            best = ConstantAnswer(split, task.metric, value, task.labels[index], measure.mode)
    return best
