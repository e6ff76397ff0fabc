"""A number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainables.tasks.kinds.kind import EncodedRows, Measurement, ReadRows
from trainables.tasks.kinds.texts import TextInputs
from trainables.tasks.kinds.usage import Usage, numbers_of_texts

if TYPE_CHECKING:
    import torch

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.constant_answer import ConstantAnswer
    from trainables.tasks.records import Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task


class Regression(TextInputs):
    """A number: outputs [n, 1], labels float64 [n]; the loss is the squared error."""

    head = "regression"
    keys = TextInputs.keys | {"label"}
    metrics = ("pearson", "spearman", "mse")
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    pipeline: ClassVar[str | None] = "text-classification"
    no_label = "0.0"

    def with_labels(
        self, read: ReadRows, records: Records, settings: TaskSettings, place: str
    ) -> ReadRows:
        from trainables.tasks.values import numbers_of

        numbers, wrong = numbers_of(records, settings.label)
        read.faults += [f"task.label: {place} has {fault}" for fault in wrong]
        read.labels = [repr(number) for number in numbers]  # 4 and 4.0 are one, whatever the file
        return read

    def check_rows(self, splits: Mapping[str, Rows], settings: TaskSettings) -> None:
        from spaces.errors import DataError

        for split, rows in splits.items():
            if len(set(rows.labels)) == 1 and (split == "train" or settings.metric != "mse"):
                consequence = (
                    "there is nothing to learn"
                    if split == "train"
                    else (f"{settings.metric} is not defined on it")
                )
                raise DataError(
                    f"task.label: every row of {split} has the number {rows.labels[0]}, so "
                    f"{consequence}; see that {settings.label!r} is the column of numbers"
                )

    def strata(self, rows: Rows) -> Sequence[str]:
        return [""] * len(rows)  # numbers are no groups

    def notes(self, splits: Mapping[str, Rows], settings: TaskSettings) -> Iterator[str]:
        for split, rows in splits.items():
            numbers = numbers_of_rows(rows)
            yield (
                f"task.label: {split} is from {numbers.min():.4g} to {numbers.max():.4g}, on the "
                f"mean {numbers.mean():.4g}, with a deviation of {numbers.std():.4g}"
            )

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        numbers = {split: numbers_of_rows(part) for split, part in rows.items()}
        return self.tokens(rows, numbers, settings, base_uri)

    def summed_loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Squared error summed over rows, in float32 at least."""
        from torch.nn.functional import mse_loss

        from trainables.engine.masters import at_least_float

        predicted = at_least_float(outputs).squeeze(-1)
        return mse_loss(predicted, labels.to(predicted.dtype), reduction="sum")

    def readings(
        self, model: torch.nn.Module, task: Task, split: str, workers: Workers
    ) -> torch.Tensor:
        """Predicted numbers float64 [n, 1]."""
        from trainables.tasks.reading import outputs_of_rows

        return outputs_of_rows(model, task.splits[split], 1, workers)

    def measure(self, task: Task, split: str, readings: torch.Tensor) -> Measurement:
        from trainables.tasks.measured_rows import RowStatistics
        from trainables.tasks.row_metrics import measured_on, number_statistics
        from trainables.tasks.split import labels_of

        labels, predicted = labels_of(task.splits[split]), readings.cpu().numpy()[:, 0]
        statistics = {name: number_statistics(name, labels, predicted) for name in self.metrics}
        metrics = {name: measured_on(name, rows) for name, rows in statistics.items()}
        rows = RowStatistics(task.metric, task.fingerprint, statistics[task.metric])
        return Measurement(metrics["mse"], metrics, rows)

    def answers(
        self, task: Task, split: str, readings: torch.Tensor
    ) -> tuple[Sequence[float], Sequence[float]]:
        """The numbers."""
        from trainables.tasks.split import labels_of

        return readings[:, 0].tolist(), labels_of(task.splits[split]).tolist()

    def predictions(
        self,
        task: Task,
        split: str,
        readings: torch.Tensor,
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """The number of each row."""
        return {"prediction": readings[:, 0].tolist()}

    def constant_answer(self, task: Task, split: str) -> ConstantAnswer | None:
        from trainables.tasks.constant_answer import ConstantAnswer
        from trainables.tasks.split import labels_of

        if task.metric != "mse":
            return None  # a constant is correlated with nothing
        numbers = labels_of(task.splits[split])
        mean = float(numbers.mean())
        return ConstantAnswer(split, "mse", float(numbers.var()), f"{mean:.4g}", "min")

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        return numbers_of_texts(settings, folder)


def numbers_of_rows(rows: Rows) -> np.ndarray:
    """The number of each row, float64 [n]."""
    return np.array([float(label) for label in rows.labels], dtype=np.float64)
