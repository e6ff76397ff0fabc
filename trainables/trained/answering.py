"""A model in memory that answers rows of the task that it was trained for, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spaces.errors import DataError, UsageError
from trainables.engine.workers import Workers
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.records import Asked, Records
from trainables.tasks.rows import ASKED, Rows, content_hash
from trainables.tasks.settings import TaskSettings
from trainables.tasks.task import Task


@dataclass(frozen=True)
class Answering:
    """A model and its task.

    `model` computes what was trained, in evaluation mode on `device`; `labels` are the task's
    classes in the order of its outputs, none where it has no classes. `inputs_of` is the URI of the
    base, or of a checkpoint, whose tokenizer or image processor makes inputs of rows.
    """

    settings: TaskSettings
    labels: tuple[str, ...]
    model: Any
    device: torch.device
    inputs_of: str

    @property
    def kind(self) -> Kind:
        """The kind of its task."""
        return kind_of(self.settings.kind)

    @property
    def asked(self) -> Asked:
        """The columns of a row that are read, and the key of the task that names each."""
        keys = self.kind.columns(self.settings)
        columns = self.kind.question_columns(self.settings)
        return {name: keys.get(name, "data") for name in columns}

    def check(self) -> None:
        """Raise UsageError where the task is of a kind that predicts nothing of rows."""
        if type(self.kind).predictions is Kind.predictions:
            raise UsageError(
                f"task.kind: {self.settings.kind} predicts nothing of rows; give it `questions` "
                "and `predictions`, as trainables.tasks.kinds.kind.Kind has them"
            )

    @torch.no_grad()
    def answers(self, records: Records, place: str) -> dict[str, list[Any]]:
        """Columns of what is predicted for each record, in their order; `place` is what an error
        names.

        Raises DataError where a value is none.
        """
        kind, settings = self.kind, self.settings
        if not len(records):
            return {"prediction": []}
        read = kind.questions(records, settings, place)
        if read.faults:
            raise DataError("; also ".join(dict.fromkeys(read.faults)))
        labels = [self.labels[0]] * len(read.inputs) if self.labels else read.labels
        hashes = [content_hash(*row) for row in zip(read.inputs, labels, strict=True)]
        rows = Rows(read.inputs, labels, hashes)  # not `of`, which would put them in order
        encoded = kind.encode({ASKED: rows}, self.labels, settings, self.inputs_of)
        task = Task(
            settings.name, settings.kind, self.labels, encoded.splits, settings.metric, "", ""
        )
        readings = kind.readings(self.model, task, ASKED, Workers(0, 1, self.device))
        return kind.predictions(task, ASKED, readings, read.inputs, settings)


def records_of(columns: Mapping[str, Sequence[object]], count: int) -> Records:
    """Rows in memory as the records of a file, whose relative paths start from here."""
    return Records(columns, range(1, count + 1))
