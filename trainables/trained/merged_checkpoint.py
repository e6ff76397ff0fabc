"""A trained adaptation merged into its base: a plain checkpoint of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from trainables.adaptations.adaptation import Adaptation, Factors, merged_with
from trainables.bases.loading import Base
from trainables.bases.location import GENERATION_CONFIG, locate
from trainables.bases.parts import quiet
from trainables.tasks.kinds.usage import Tokenizing
from trainables.trained.processor import write_processor


def write_merged_checkpoint(
    folder: Path,
    adaptation: Adaptation,
    base: Base,
    labels: Sequence[str],
    tokenizing: Tokenizing | None = None,
    update: Mapping[str, Factors] | None = None,
) -> None:
    """Write the base with the update and the head in it; the base in memory is spent by it.

    `labels` name the outputs of the head, none where they have no names. Tokenizer and image
    processor go along, as `write_processor` has them, and how the base writes, as it says so
    itself. `update` is what to merge in place of the whole update. Raises UsageError where the
    update cannot be merged.
    """
    merge_into_base(adaptation, base, labels, update)
    with quiet():
        base.model.save_pretrained(folder)
    # Byte for byte: transformers leaves out what it takes for a default, and refuses some.
    theirs = locate(base.uri) / GENERATION_CONFIG
    if theirs.is_file() and (folder / GENERATION_CONFIG).is_file():
        shutil.copyfile(theirs, folder / GENERATION_CONFIG)
    write_processor(base.uri, folder, tokenizing)


def merge_into_base(
    adaptation: Adaptation,
    base: Base,
    labels: Sequence[str],
    update: Mapping[str, Factors] | None = None,
) -> None:
    """Put the update into the parameters of the base in memory, and the names of its outputs into
    its config; the head stays in its place as long as the adaptation is open. As above."""
    if update is None:
        changed = adaptation.merged()
    else:
        changed = merged_with(base.model, {name: B @ A for name, (A, B) in update.items()})
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
