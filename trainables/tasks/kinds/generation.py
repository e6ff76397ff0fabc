"""Text that is written: trained as any text that goes on, measured on what the base writes."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from spaces.errors import ConfigError
from trainables.tasks.kinds.causal import Causal, form_of_settings
from trainables.tasks.kinds.kind import EncodedRows, Measurement, ReadRows
from trainables.tasks.kinds.language import row_losses
from trainables.tasks.kinds.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.constant_answer import ConstantAnswer
    from trainables.tasks.language.forms import Example
    from trainables.tasks.language.written_split import WrittenSplit
    from trainables.tasks.records import Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task


NO_ANSWER = "-"
"""Stands for the answer that a row to be answered lacks; nothing is measured by it."""


class Readings(NamedTuple):
    """What a base writes for each row, and the summed loss of each row's right answer [n]."""

    written: Sequence[str]
    losses: NDArray[np.float64]


class Generation(Causal):
    """The answer that a base writes.

    A row's inputs are its prompt, or its conversation as JSON; its label is the JSON of the list of
    accepted answers of a prompt, of which the first is trained.
    """

    keys = (Causal.keys - {"text"}) | {"extract", "generation", "positive_class"}
    metrics = (
        "exact_match", "accuracy", "f1", "bleu", "rouge1", "rouge2", "rougeL", "loss", "perplexity",
    )  # fmt: skip

    has_answers = True
    answers_rows = True

    def check(self, settings: TaskSettings) -> None:
        super().check(settings)
        form = form_of_settings(settings)
        if not (form.has_prompt or form.is_conversation):
            raise ConfigError(
                "task.completion: is required; name the column of what is to be written"
            )

    def label_of(self, example: Example) -> str:
        return json.dumps(example.accepted, ensure_ascii=False)

    def check_rows(self, splits: Mapping[str, Rows], settings: TaskSettings) -> None:
        from trainables.tasks.language.written_metrics import (
            CLASS_METRICS,
            check_classes_written,
            check_extracted,
        )
        from trainables.tasks.language.written_split import references_of

        for split in ("dev", "test"):
            if (rows := splits.get(split)) is None:
                continue
            references = references_of(rows, form_of_settings(settings))
            if settings.extract is not None:
                check_extracted(split, references, settings.extract)
            if settings.metric in CLASS_METRICS:
                check_classes_written(settings.metric, split, references, settings.extract)

    def answered(
        self, row: tuple[Input, ...], label: str, settings: TaskSettings
    ) -> tuple[Hashable, str]:
        first = label if form_of_settings(settings).is_conversation else json.loads(label)[0]
        return super().answered(row, first, settings)

    def written(self, row: tuple[Input, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        if form_of_settings(settings).is_conversation:
            return super().written(row, label, settings)
        accepted = json.loads(label)
        return {"prompt": row[0], "completion": accepted if len(accepted) > 1 else accepted[0]}

    def measuring_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        from trainables.bases.parts import load_generation_config
        from trainables.tasks.language.encoding import tokenizer_of
        from trainables.tasks.language.writing import end_tokens

        extract = settings.extract
        facts = {
            "ends": end_tokens(load_generation_config(base_uri), tokenizer_of(base_uri)),
            "generation": settings.generation.model_dump(mode="json", exclude={"batch_tokens"}),
            "extract": None if extract is None else extract.model_dump(mode="json"),
        }
        return facts | ({"positive": settings.positive_class} if settings.metric == "f1" else {})

    def encode(
        self, rows: Mapping[str, Any], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        from trainables.tasks.language.written_split import written_splits

        return written_splits(rows, form_of_settings(settings), settings, base_uri)

    def readings(  # type: ignore[override]
        self, model: torch.nn.Module, task: Task, split: str, workers: Workers
    ) -> Readings:
        rows = written_of(task, split)
        return Readings(rows.write(model, workers), row_losses(model, rows, workers))

    def measure(self, task: Task, split: str, readings: Readings) -> Measurement:  # type: ignore[override]
        from trainables.tasks.measured_rows import RowStatistics
        from trainables.tasks.row_metrics import measured_on, weighted

        rows = written_of(task, split)
        statistics = losses = weighted(readings.losses, rows.targets)
        if task.metric not in Causal.metrics:
            statistics = rows.statistics(task.metric, readings.written)
        return Measurement(
            measured_on("loss", losses),
            {
                "perplexity": measured_on("perplexity", losses),
                task.metric: measured_on(task.metric, statistics),
            },
            RowStatistics(task.metric, task.fingerprint, statistics),
        )

    def answers(
        self, task: Task, split: str, readings: Readings
    ) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """What is written, and the accepted answers of each row."""
        return readings.written, [list(each) for each in written_of(task, split).references]

    def question_columns(self, settings: TaskSettings) -> tuple[str, ...]:
        answer = form_of_settings(settings).answer
        return tuple(each for each in self.input_columns(settings) if each != answer)

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.language.forms import with_answers

        answered = with_answers(records, form_of_settings(settings), NO_ANSWER)
        return self.read(answered, settings, place)

    def predictions(
        self,
        task: Task,
        split: str,
        readings: Readings,
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """The answer in what is written for each row, None where `extract` finds none; and all that
        is written."""
        written = list(readings.written)
        extract = settings.extract
        answers = [text.strip() if extract is None else extract.answer(text) for text in written]
        return {"prediction": answers, "text": written}

    def constant_answer(self, task: Task, split: str) -> ConstantAnswer | None:
        from trainables.tasks.constant_answer import ConstantAnswer

        if task.metric not in ("exact_match", "accuracy"):
            return None
        rows = written_of(task, split)
        answer, text = rows.commonest
        value = float(rows.statistics(task.metric, [text] * len(rows))[:, 0].mean())
        return ConstantAnswer(split, task.metric, value, answer, "max")

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        from trainables.tasks.language.usage import what_is_written

        return what_is_written(settings, form_of_settings(settings), folder, base)


def written_of(task: Task, split: str) -> WrittenSplit:
    """The split as this kind has encoded it."""
    from trainables.tasks.language.written_split import WrittenSplit

    rows = task.splits[split]
    assert isinstance(rows, WrittenSplit), "a kind measures what it has encoded"
    return rows
