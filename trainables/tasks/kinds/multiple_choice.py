"""The right one of several options: the one that a base finds likeliest behind the prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError
from trainables.tasks.kinds.kind import EncodedRows, Measurement, ReadRows
from trainables.tasks.kinds.language import LanguageKind
from trainables.tasks.kinds.usage import Usage

if TYPE_CHECKING:
    import torch

    from trainables.bases.loading import Base
    from trainables.engine.workers import Workers
    from trainables.tasks.constant_answer import ConstantAnswer
    from trainables.tasks.language.choice_split import ChoiceSplit
    from trainables.tasks.language.options import Options
    from trainables.tasks.records import Asked, Records
    from trainables.tasks.rows import Input, Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.task import Task

MOST_SHARES = 10  # options that a note counts


class MultipleChoice(LanguageKind):
    """The likeliest option. It trains on the right one, as an answer without an end token.

    A row's inputs are its prompt and its options, its label is the index of the right one.
    """

    keys = frozenset({"template", "prompt", "options", "label", "label_form", "delimiter"})
    metrics = ("accuracy", "accuracy_per_token", "accuracy_per_byte")
    answers_rows = True

    def check(self, settings: TaskSettings) -> None:
        if settings.options is None:
            raise ConfigError(
                "task.options: is required; list the texts, or name the column that holds them, or "
                "one for each: {columns: [a, b]}"
            )
        if settings.prompt is None and settings.template is None:
            raise ConfigError(
                "task.prompt: is required; name a column, or compose it of several with template"
            )
        if settings.prompt is not None and settings.template is not None:
            raise ConfigError("task.prompt: does not go with template, which composes it: drop one")

    def input_columns(self, settings: TaskSettings) -> Asked:
        from trainables.tasks.language.options import option_columns
        from trainables.tasks.language.templates import columns

        assert settings.options is not None, "a checked section has options"
        if settings.template is not None:
            prompt = dict.fromkeys(columns(settings.template), "template")
        else:
            prompt = {str(settings.prompt): "prompt"}
        return {**prompt, **dict.fromkeys(option_columns(settings.options), "options")}

    def read(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        from trainables.tasks.language.options import right_options

        inputs, options, faults = self._asked(records, settings, place)
        right: list[int] = []
        if options is not None:
            right, wrong = right_options(
                records, settings.label, options, settings.label_form, place
            )
            faults += wrong
        if faults:
            return ReadRows((), (), faults)
        return ReadRows(inputs, [str(index) for index in right])

    def _asked(
        self, records: Records, settings: TaskSettings, place: str
    ) -> tuple[list[tuple[str, ...]], list[Options] | None, list[str]]:
        """The prompt and the options of every row, of use where there is no fault; the options
        alone, None where these have one; and the faults."""
        from trainables.tasks.language.forms import template_texts
        from trainables.tasks.language.options import options_of
        from trainables.tasks.values import strings_of

        assert settings.options is not None, "a checked section has options"
        if settings.template is not None:
            prompts, faults = template_texts(settings.template, records, place)
        else:
            prompts, wrong = strings_of(records, str(settings.prompt), "text")
            faults = [f"task.prompt: {place} has {fault}" for fault in wrong]
        options, wrong = options_of(records, settings.options, place)
        faults += wrong
        inputs = (
            []
            if faults
            else [(prompt, *of.texts) for prompt, of in zip(prompts, options, strict=True)]
        )
        return inputs, None if wrong else options, faults

    def notes(self, splits: Mapping[str, Rows], settings: TaskSettings) -> Iterator[str]:
        shares = []
        for split, rows in splits.items():
            options = max(len(row) - 1 for row in rows.inputs)
            right = [int(label) for label in rows.labels]
            counts = np.bincount(right, minlength=options)[:MOST_SHARES]
            shares.append(f"{', '.join(f'{count / len(rows):.0%}' for count in counts)} of {split}")
        yield f"task.options: the right one is in turn {'; '.join(shares)}"

    def input_word(self, settings: TaskSettings) -> str:
        return "prompt and options"

    def question(self, row: tuple[Input, ...]) -> tuple[Input, ...]:
        return row[:1]

    def answered(
        self, row: tuple[Input, ...], label: str, settings: TaskSettings
    ) -> tuple[Hashable, str]:
        prompt, *options = map(str, row)
        return (prompt, *sorted(options)), options[int(label)]

    def written(self, row: tuple[Input, ...], label: str, settings: TaskSettings) -> dict[str, Any]:
        return {"prompt": row[0], "options": list(row[1:]), settings.label: int(label)}

    def input_facts(self, settings: TaskSettings, base_uri: str) -> dict[str, Any]:
        return {"max_length": settings.max_length, "delimiter": settings.delimiter}

    def encode(
        self, rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
    ) -> EncodedRows:
        from trainables.tasks.language.choice_split import choice_splits

        return choice_splits(rows, settings, base_uri)

    def readings(
        self, model: torch.nn.Module, task: Task, split: str, workers: Workers
    ) -> NDArray[np.float64]:
        """The log-likelihood of each option, float64 [n, most options], NaN beyond a row's."""
        import torch

        from trainables.engine.divided import together
        from trainables.tasks.language.option_scores import option_log_likelihoods

        rows = choices_of(task, split)
        order = np.argsort(rows.lengths, kind="stable")
        own = workers.share(order)
        scores = np.zeros((len(rows), rows.choices.most_options))
        with together(model):
            scores[own] = option_log_likelihoods(model, rows.choices, own, device=workers.device)
        return np.asarray(workers.sum_(torch.as_tensor(scores, device=workers.device)).cpu())

    def measure(self, task: Task, split: str, readings: NDArray[np.float64]) -> Measurement:
        from trainables.tasks.collapse import predicted_classes
        from trainables.tasks.language.choice_metrics import hits_by_metric, likeliest_by
        from trainables.tasks.measured_rows import RowStatistics
        from trainables.tasks.row_metrics import measured_on, weighted

        choices = choices_of(task, split).choices
        own = readings[np.arange(len(readings)), choices.right]
        tokens = choices.token_counts[np.arange(len(readings)), choices.right]
        statistics = {
            name: weighted(hits, np.ones(len(hits)))
            for name, hits in hits_by_metric(readings, choices).items()
        }
        metrics = {name: measured_on(name, rows) for name, rows in statistics.items()}
        # An option is judged by its text alone, so one place in every row is one answer to all,
        # such as "yes", or no answer at all.
        metrics |= predicted_classes(likeliest_by(task.metric, readings, choices), choices.right)
        rows = RowStatistics(task.metric, task.fingerprint, statistics[task.metric])
        return Measurement(float(-own.sum() / tokens.sum()), metrics, rows)

    def answers(
        self, task: Task, split: str, readings: NDArray[np.float64]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """The indices of the likeliest options and of the right ones."""
        from trainables.tasks.language.choice_metrics import likeliest

        return likeliest(readings).tolist(), choices_of(task, split).choices.right.tolist()

    def questions(self, records: Records, settings: TaskSettings, place: str) -> ReadRows:
        inputs, _, faults = self._asked(records, settings, place)
        return ReadRows(inputs, ["0"] * len(inputs), faults)

    def predictions(
        self,
        task: Task,
        split: str,
        readings: NDArray[np.float64],
        rows: Sequence[tuple[Input, ...]],
        settings: TaskSettings,
    ) -> dict[str, list[Any]]:
        """The likeliest option of each row by the task's metric, its place from 0, and the score
        of each option that it is the likeliest by: its log-likelihood, as the metric divides it."""
        from trainables.tasks.language.choice_metrics import likeliest, scores_by

        scores = scores_by(task.metric, readings, choices_of(task, split).choices)
        chosen = likeliest(scores).tolist()
        options = [row[1:] for row in rows]
        return {
            "prediction": [each[index] for each, index in zip(options, chosen, strict=True)],
            "index": chosen,
            "scores": [
                own[: len(each)].tolist() for own, each in zip(scores, options, strict=True)
            ],
        }

    def constant_answer(self, task: Task, split: str) -> ConstantAnswer | None:
        from trainables.tasks.constant_answer import ConstantAnswer

        choices = choices_of(task, split).choices
        counts = np.bincount(choices.right)
        most = int(counts.argmax())
        share = float(counts[most] / len(choices))
        return ConstantAnswer(split, task.metric, share, f"option {most + 1}", "max")

    def usage(
        self, settings: TaskSettings, labels: Sequence[str], folder: str, base: Base
    ) -> Usage:
        from trainables.tasks.language.usage import likeliest_option

        return likeliest_option(settings, folder, base)


def choices_of(task: Task, split: str) -> ChoiceSplit:
    """The split as this kind has encoded it."""
    from trainables.tasks.language.choice_split import ChoiceSplit

    rows = task.splits[split]
    assert isinstance(rows, ChoiceSplit), "a kind measures what it has encoded"
    return rows
