"""A trained adaptation merged into its base: a plain checkpoint of transformers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from trainables.adaptations.adaptation import Adaptation
from trainables.bases.loading import Base
from trainables.bases.location import TOKENIZER_FILES, locate, processor_files
from trainables.bases.parts import load_tokenizer, quiet


def write_merged_checkpoint(
    folder: Path, adaptation: Adaptation, base: Base, labels: Sequence[str]
) -> None:
    """Write the base with the update and the head in it; the base in memory is spent by it.

    `labels` name the outputs of the head. The files of tokenizer and image processor are copied
    along. Raises UsageError where the update cannot be merged.
    """
    changed = adaptation.merged()
    # What the adaptation has attached is in the weights now; the head stays in its place.
    adaptation.detach()
    model = base.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in changed.items():
            parameters[name].copy_(value)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    with quiet():
        model.save_pretrained(folder)
    _copy_processor(base.uri, folder)


def _copy_processor(uri: str, folder: Path) -> None:
    """Copy the files of a base's tokenizer and image processor, as far as it has them.

    A tokenizer inside a GGUF file, or one without a padding token, is written anew: with the
    padding token that the model was trained with.
    """
    path = locate(uri)
    for name in processor_files(path):
        shutil.copyfile(path / name, folder / name)
    if path.is_file() or _lacks_padding(folder):
        load_tokenizer(uri).save_pretrained(folder)


def _lacks_padding(folder: Path) -> bool:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return False
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer.pad_token_id is None
