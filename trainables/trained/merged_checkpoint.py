"""A trained adaptation merged into its base: a plain checkpoint of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trainables.adaptations.adaptation import Adaptation
from trainables.bases.loading import Base
from trainables.bases.parts import quiet
from trainables.trained.processor import write_processor


def write_merged_checkpoint(
    folder: Path,
    adaptation: Adaptation,
    base: Base,
    labels: Sequence[str],
    max_length: int | None = None,
) -> None:
    """Write the base with the update and the head in it; the base in memory is spent by it.

    `labels` name the outputs of the head. Tokenizer and image processor go along, as
    `write_processor` has them. Raises UsageError where the update cannot be merged.
    """
    changed = adaptation.merged()
    # What the adaptation has attached is in the weights now; the head stays in its place.
    adaptation.detach()
    model = base.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in changed.items():
            parameters[name].copy_(value)
    if labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: i for i, label in enumerate(labels)}
    with quiet():
        model.save_pretrained(folder)
    write_processor(base.uri, folder, max_length)
