"""The passes of a task's rows that hold most, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from trainables.bases.key_values import key_value_bytes
from trainables.profiling.settings import ProfileSettings
from trainables.tasks.grouping import within_budget
from trainables.tasks.language.choice_split import ChoiceSplit
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.language.writing import CACHE_BYTES, batches_by_tokens, tokens_within
from trainables.tasks.language.written_split import WrittenSplit
from trainables.tasks.reading import EVALUATION_TOKENS, by_length
from trainables.tasks.split import Pass, Split
from trainables.tasks.task import Task
from trainables.training.settings import TrainSettings


def of_longest_rows(split: Split, rows: int, on_cpu: bool) -> Sequence[Pass]:
    """The passes of a micro-batch that has the split's longest rows in it."""
    lengths = split.lengths
    longest = (
        np.argpartition(lengths, -rows)[-rows:] if rows < len(lengths) else np.arange(len(lengths))
    )
    return split.passes(longest, on_cpu)


@dataclass(frozen=True)
class Measured:
    """A pass of measuring, and the bytes of keys and values that are kept beside it."""

    batch: Pass
    key_values: int = 0


@dataclass(frozen=True)
class Rows:
    """The passes of one worker's micro-batch in training, in the profile's initial phase and in its
    static pass, and those of measuring; the heaviest of each."""

    training: Sequence[Pass]
    initial_phase: Sequence[Pass]
    static_pass: Sequence[Pass]
    measuring: Sequence[Measured]

    @classmethod
    def of(
        cls,
        task: Task,
        train: TrainSettings,
        profile: ProfileSettings,
        workers: int,
        config: Any,
        dtype: torch.dtype,
        *,
        on_cpu: bool,
    ) -> Self:
        """Those of a task on a base of this config."""
        split = task.splits["train"]
        micro_batch = train.batch_size / train.gradient_accumulation_steps
        return cls(
            of_longest_rows(split, math.ceil(micro_batch / workers), on_cpu),
            of_longest_rows(split, math.ceil(profile.batch_size / workers), on_cpu),
            of_longest_rows(split, profile.batch_size, on_cpu),  # each worker has its own
            of_measuring(task, config, dtype, on_cpu),
        )


def of_measuring(task: Task, config: Any, dtype: torch.dtype, on_cpu: bool) -> list[Measured]:
    """The widest pass of every way in which a task's dev and test rows go through a base."""
    return [
        each
        for of_one in task.measured
        for name, split in of_one.splits.items()
        if name != "train"
        for each in _of_split(split, config, dtype, on_cpu)
    ]


def _of_split(split: Split, config: Any, dtype: torch.dtype, on_cpu: bool) -> Iterator[Measured]:
    if isinstance(split, ChoiceSplit):
        yield Measured(_of_options(split, on_cpu))
    elif isinstance(split, Sequences):
        yield Measured(_widest(split, within_budget(split.lengths, EVALUATION_TOKENS)))
    else:
        yield Measured(_widest(split, by_length(split, on_cpu)))
    if isinstance(split, WrittenSplit):
        yield _of_writing(split, config, dtype)


def _widest(split: Split, groups: Sequence[Any]) -> Pass:
    return split.batch(max(groups, key=lambda rows: len(rows) * int(split.lengths[rows].max())))


def _of_options(split: ChoiceSplit, on_cpu: bool) -> Pass:
    lines, positions, logits = split.choices.widest(on_cpu, shares_prompts=split.packs)
    return {
        "input_ids": torch.zeros(lines, positions, dtype=torch.long),
        "attention_mask": torch.ones(lines, 1, positions, positions, dtype=torch.bool)
        if split.packs
        else torch.ones(lines, positions, dtype=torch.long),
        "logits_to_keep": torch.arange(logits),
    }


def _of_writing(split: WrittenSplit, config: Any, dtype: torch.dtype) -> Measured:
    """The prompts' pass, and the keys and values that it leaves with those of what is written."""
    prompts, new = np.diff(split.prompt_offsets), split.generation.max_new_tokens
    at_most = tokens_within(CACHE_BYTES, config, dtype)
    batches = batches_by_tokens(prompts.tolist(), split.generation, at_most)
    rows = max(batches, key=lambda rows: len(rows) * (int(prompts[rows].max()) + new))
    lines, longest = len(rows), max(1, int(prompts[rows].max()))
    return Measured(
        {
            "input_ids": torch.zeros(lines, longest, dtype=torch.long),
            "attention_mask": torch.ones(lines, longest, dtype=torch.long),
            "logits_to_keep": torch.arange(1),
        },
        lines * (longest + new) * key_value_bytes(config, dtype),
    )
