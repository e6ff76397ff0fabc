"""Text that goes on: answers after prompts, conversations, or running text."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from spaces.errors import ConfigError
from trainables.tasks.kinds.kind import EncodedRows, Measurement, ReadRows
from trainables.tasks.kinds.language import LanguageKind, row_losses
from trainables.tasks.kinds.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.language.forms import Example, Form
    from trainables.tasks.records import Asked, Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task


class Causal(LanguageKind):
    """The text that follows a prompt, measured by how likely a base finds what is right.

    A row's inputs are its prompt, its running text, or its conversation as JSON; its label is the
    completion of a prompt.
    """

    keys = frozenset(
        {
            "text", "template", "prompt", "completion", "messages", "map", "chat_template",
            "delimiter",
        }
    )  # fmt: skip
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    has_answers = False
    streams = True

    def check(self, settings: TaskSettings) -> None:
        form = form_of_settings(settings)
        if settings.chat_template is not None and not form.is_conversation:
            raise ConfigError(
                "task.chat_template: renders messages, and this task has none; name their column "
                "in task.messages, or drop it"
            )
        if settings.delimiter is not None and not form.has_prompt:
            raise ConfigError(
                "task.delimiter: stands between a prompt and its answer, and this task has no "
                "prompt; drop it"
            )

    def input_columns(self, settings: TaskSettings) -> Asked:
        return form_of_settings(settings).asked()

    def columns(self, settings: TaskSettings) -> Asked:
        return self.input_columns(settings)

    def read(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.language.forms import examples
        from trainables.tasks.language.messages import to_json

        form = form_of_settings(settings)
        made, faults = examples(form, records, place, many_answers=self.has_answers)
        return ReadRows(
            [
                (to_json(each.messages),)
                if each.messages is not None
                else (each.completion if each.prompt is None else each.prompt,)
                for each in made
            ],
            ["" if each.prompt is None else self.label_of(each) for each in made],
            faults,
        )

    def label_of(self, example: Example) -> str:
        """The label of a row that has a prompt."""
        return example.completion

    def input_word(self, settings: TaskSettings) -> str:
        form = form_of_settings(settings)
        return "conversation" if form.is_conversation else "prompt" if form.has_prompt else "text"

    def answered(
        self, row: tuple[Input, ...], label: str, settings: TaskSettings
    ) -> tuple[Hashable, str]:
        if not form_of_settings(settings).is_conversation:
            return row, label
        from trainables.tasks.language.messages import asked_and_answer, from_json

        return asked_and_answer(from_json(str(row[0])))

    def words(self, row: tuple[Input, ...], settings: TaskSettings) -> str:
        if not form_of_settings(settings).is_conversation:
            return super().words(row, settings)
        said = (f"{each['role']}: {each['content']}" for each in json.loads(str(row[0])))
        return " ".join(" ".join(said).split())

    def written(self, row: tuple[Input, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        form = form_of_settings(settings)
        if form.is_conversation:
            return {"messages": json.loads(str(row[0]))}
        return {"prompt": row[0], "completion": label} if form.has_prompt else {"text": row[0]}

    def input_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        from trainables.bases.parts import task_config
        from trainables.tasks.language.encoding import chat_for, delimiter_of

        form, facts = form_of_settings(settings), {"max_length": settings.max_length}
        if form.is_conversation:
            # What cannot write has no use for a template either; the classes are of no matter here.
            task_config(base_uri, self.head, 0)
            return {**facts, "chat_template": chat_for(settings, base_uri).template}
        return {**facts, "delimiter": delimiter_of(settings)} if form.has_prompt else facts

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        from trainables.tasks.language.encoding import Encoder

        encoder = Encoder(settings, base_uri)
        return encoder.encoded(encoder.of_form(rows, form_of_settings(settings)))

    def readings(
        self, model: torch.nn.Module, task: Task, split: str, workers: Workers
    ) -> NDArray[np.float64]:
        """The summed loss of each row, float64 [n]."""
        from trainables.tasks.language.sequences import Sequences

        rows = task.splits[split]
        assert isinstance(rows, Sequences), "a kind measures what it has encoded"
        return row_losses(model, rows, workers)

    def measure(self, task: Task, split: str, readings: NDArray[np.float64]) -> Measurement:
        from trainables.tasks.measured_rows import RowStatistics
        from trainables.tasks.row_metrics import measured_on, weighted

        statistics = weighted(readings, task.splits[split].targets)
        metrics = {name: measured_on(name, statistics) for name in self.metrics}
        rows = RowStatistics(task.metric, task.fingerprint, statistics)
        return Measurement(metrics["loss"], metrics, rows)

    def question_columns(self, settings: TaskSettings) -> tuple[str, ...]:
        return tuple(self.columns(settings))

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        """All of a row: what is told of it is how likely its own answer is."""
        return self.read(records, settings, place)

    def predictions(
        self,
        task: Task,
        split: str,
        readings: Any,
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """Of each row the mean loss of the tokens that bear one, its perplexity, and how many of
        them there are."""
        import numpy as np

        tokens = task.splits[split].targets
        loss = readings / tokens
        told = {"loss": loss, "perplexity": np.exp(loss), "tokens": tokens}
        return {name: values.tolist() for name, values in told.items()}

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        from trainables.tasks.language.usage import loss_of_a_text

        return loss_of_a_text(settings, form_of_settings(settings), folder, base)


def form_of_settings(settings: TaskSettings) -> Form:
    """The form of the rows that a section names. Raises ConfigError where it names none."""
    from trainables.tasks.language.forms import form_of

    return form_of(
        text=settings.text[0] if settings.text else None,
        prompt=settings.prompt,
        completion=settings.completion,
        messages=settings.messages,
        template=settings.template,
        map=settings.map,
    )
