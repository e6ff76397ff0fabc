"""What kinds have in common that read one text, or two as a pair, and predict with a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError
from trainables.tasks.kinds.kind import EncodedRows, Kind, ReadRows
from trainables.tasks.kinds.usage import Tokenizing

if TYPE_CHECKING:
    from trainables.tasks.records import Asked, Records
    from trainables.tasks.rows import Rows
    from trainables.tasks.settings import TaskSettings


def template_fault(template: str) -> str | None:
    """What is wrong with a template; None where nothing is."""
    from trainables.tasks.language.templates import columns

    try:
        columns(template)
    except ConfigError as error:
        return str(error).removeprefix("task.template: ")
    return None


class TextInputs(Kind):
    """A row is one or two texts, or one that a template composes, and a label beside them.

    `no_label` stands for the label of a row that has none; it says nothing.
    """

    no_label: ClassVar[str] = ""
    keys = frozenset({"text", "template"})

    def refusal(self, key: str, value: object, given: Mapping[str, Any]) -> str | None:
        if key == "template" and value is not None:
            return template_fault(str(value))
        if key != "text":
            return None
        assert isinstance(value, tuple), "a list of names"
        if "template" not in given:
            return None  # wrong itself, and said so
        if given["template"] is not None:
            return "does not go with template, which names its columns itself" if value else None
        if not value:
            return "is required; name one column, or two for a pair of texts"
        if len(value) > 2:
            return f"names {len(value)} columns; name one, or two for a pair of texts"
        if len(set(value)) < len(value):
            return f"names {value[0]!r} twice; name two columns for a pair of texts"
        return None

    def input_columns(self, settings: TaskSettings) -> Asked:
        if settings.template:
            from trainables.tasks.language.templates import columns

            return dict.fromkeys(columns(settings.template), "template")
        return dict.fromkeys(settings.text, "text")

    def read(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        return self.with_labels(self.questions(records, settings, place), records, settings, place)

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.values import strings_of

        if settings.template:
            from trainables.tasks.language.forms import template_texts

            composed, faults = template_texts(settings.template, records, place)
            return self._unlabelled([(text,) for text in composed], faults)
        columns, faults = [], []
        for column in settings.text:
            strings, wrong = strings_of(records, column, "text")
            columns.append(strings)
            faults += [f"task.text: {place} has {fault}" for fault in wrong]
        return self._unlabelled(list(zip(*columns, strict=not faults)), faults)

    def _unlabelled(self, inputs: Sequence[tuple[str, ...]], faults: list[str]) -> ReadRows:
        return ReadRows(inputs, [self.no_label] * len(inputs), faults)

    def with_labels(
        self, read: ReadRows, records: Records, settings: TaskSettings, place: str
    ) -> ReadRows:
        """The rows with the class of each."""
        from trainables.tasks.classes import labelled

        return labelled(read, records, settings.label, place)

    def written(self, row: tuple[Any, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        if settings.template:
            return {"text": row[0], settings.label: label}
        return super().written(row, label, settings)

    def input_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        return {"max_length": settings.max_length, "texts": len(settings.text) or 1}

    def tokenizing(self, settings: TaskSettings) -> Tokenizing | None:
        return Tokenizing("right", settings.max_length)

    def tokens(
        self,
        rows: Mapping[str, Rows],
        labels: Mapping[str, NDArray[np.int64] | NDArray[np.float64]],
        settings: TaskSettings,
        base_uri: str,
    ) -> EncodedRows:
        """Every split as tokens, with what each row's label is to the loss."""
        from trainables.tasks.texts import token_splits

        return EncodedRows(*token_splits(rows, labels, settings, self.head, base_uri))
