"""What kinds have in common that train a base to write on: the loss of the next token.

An answer's tokens alone bear loss, or those of a running text. The head is the base's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.texts import template_fault
from trainables.tasks.kinds.usage import Tokenizing

if TYPE_CHECKING:
    import torch

    from trainables.engine.workers import Workers
    from trainables.tasks.language.sequences import Sequences
    from trainables.tasks.rows import Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.split import Pass
    from trainables.tasks.task import Task


class LanguageKind(Kind):
    """The next token: logits [targets, vocabulary], labels int64 [targets]."""

    head = "causal"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    pipeline: ClassVar[str | None] = "text-generation"

    def refusal(self, key: str, value: object, given: Mapping[str, Any]) -> str | None:
        if key == "template" and value is not None:
            return template_fault(str(value))
        if key == "text" and isinstance(value, tuple) and len(value) > 1:
            return f"names {len(value)} columns; name one of running text, or compose it (template)"
        return None

    def strata(self, rows: Rows) -> Sequence[str]:
        return [""] * len(rows)  # answers are no groups

    def fitted(self, task: Task, packs: Callable[[], bool]) -> Task:
        from trainables.tasks.language.sequences import Sequences

        splits = {
            name: replace(split, packs=packs()) if isinstance(split, Sequences) else split
            for name, split in task.splits.items()
        }
        return replace(task, splits=splits)

    def tokenizing(self, settings: TaskSettings) -> Tokenizing | None:
        from trainables.tasks.language.chat_template import read_chat_template

        template = read_chat_template(settings.chat_template)
        return Tokenizing("left", chat_template=template)  # what is written follows a prompt's end


def row_losses(model: torch.nn.Module, split: Sequences, workers: Workers) -> NDArray[np.float64]:
    """The loss of each row, summed over its targets: float64 [n]. A collective."""
    import torch

    from trainables.engine.divided import together
    from trainables.tasks.grouping import within_budget
    from trainables.tasks.reading import EVALUATION_TOKENS
    from trainables.tasks.split import to_device

    losses = torch.zeros(len(split), dtype=torch.float64, device=workers.device)
    with together(model):
        for indices in workers.share(within_budget(split.lengths, EVALUATION_TOKENS)):
            batch = to_device(split.batch(indices), workers)
            of_target = torch.from_numpy(np.repeat(indices, split.targets[indices]))
            losses.index_add_(0, of_target.to(workers.device), _target_losses(model, batch))
    return np.asarray(workers.sum_(losses).cpu().numpy())


def _target_losses(model: torch.nn.Module, batch: Pass) -> torch.Tensor:
    """The loss of each target of a pass, float64 [targets]. Its logits are gone before the next
    pass has its own."""
    from torch.nn.functional import cross_entropy

    from trainables.engine.masters import at_least_float
    from trainables.tasks.split import outputs_of

    labels = batch.pop("labels")
    outputs = at_least_float(outputs_of(model, batch))
    return cross_entropy(outputs, labels, reduction="none").double()
