"""A split of multiple choice: what trains, the right option of each row, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from trainables.tasks.care import Cuts
from trainables.tasks.kinds.kind import EncodedRows
from trainables.tasks.language.encoding import Encoder, Marked
from trainables.tasks.language.option_scores import ChoiceRows, choice_rows
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.rows import Rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.texts import TokenRows
from trainables.tasks.work import Work


@dataclass(frozen=True)
class ChoiceSplit(Sequences):
    """The prompts with their right options as sequences, and with all options as `choices`."""

    choices: ChoiceRows = field(kw_only=True)

    def first(self, rows: int) -> Self:
        return replace(super().first(rows), choices=self.choices.first_rows(rows))

    def measuring_work(self, on_cpu: bool) -> Work:
        """Every prompt once, and its options behind it."""
        return self.choices.work(on_cpu, shares_prompts=self.packs)


def choice_splits(rows: Mapping[str, Rows], settings: TaskSettings, base_uri: str) -> EncodedRows:
    """Every split as tokens. Raises DataError and BaseModelError as an `Encoder` does."""
    encoder = Encoder(settings, base_uri)
    splits = {}
    for split, part in rows.items():
        choices = choice_rows(
            encoder.tokenizer,
            [str(row[0]) for row in part.inputs],
            [[str(option) for option in row[1:]] for row in part.inputs],
            [int(label) for label in part.labels],
            max_length=settings.max_length,
            delimiter=settings.delimiter,
        )
        cuts = Cuts(choices.prompts_cut, choices.options_cut)
        encoder.note(cuts, split, len(part))
        trained = encoder.checked(_right_options(choices), part, split)
        of_rows = choices.option_offsets[choices.first]
        encoder.check_tokens(TokenRows(choices.prompts, choices.prompt_offsets), part, split)
        encoder.check_tokens(TokenRows(choices.options, of_rows), part, split)
        splits[split] = ChoiceSplit(
            trained.input_ids, trained.targets_mask, trained.offsets, trained.pad_token_id,
            choices=choices,
        )  # fmt: skip
    return encoder.encoded(splits)


def _right_options(choices: ChoiceRows) -> Iterator[Marked]:
    for index in range(len(choices)):
        prompt, options = choices.row(index)
        answer = options[int(choices.right[index])]
        marks = np.arange(len(prompt) + len(answer)) >= len(prompt)
        yield [*prompt, *answer], marks.tolist()
