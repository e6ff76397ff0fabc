"""What makes inputs of texts and pictures, written beside a trained model as the trial used it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import transformers

from trainables.bases.location import TOKENIZER_FILES, locate, processor_files
from trainables.bases.parts import load_tokenizer, quiet

_TOKENIZER_CONFIG = "tokenizer_config.json"


def write_processor(uri: str, folder: Path, max_length: int | None) -> None:
    """Copy the files of a base's tokenizer and image processor, as far as it has them.

    The tokenizer cuts at `max_length` tokens where it is asked to cut, and pads on the right, as
    the trial did (None: as the base has it). One inside a GGUF file, one without a padding token,
    or one that cannot be read from this folder alone is written anew, with the padding token that
    the model was trained with.
    """
    path = locate(uri)
    for name in processor_files(path):
        shutil.copyfile(path / name, folder / name)
    if path.is_file() or (_has_tokenizer(folder) and not _can_be_used(folder)):
        load_tokenizer(uri).save_pretrained(folder)
    if max_length is not None and _has_tokenizer(folder):
        config = folder / _TOKENIZER_CONFIG
        said = json.loads(config.read_text()) if config.is_file() else {}
        said |= {"model_max_length": max_length, "padding_side": "right"}
        config.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _can_be_used(folder: Path) -> bool:
    """Whether transformers reads a tokenizer that pads from the folder."""
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return False  # which of them, is transformers' choice: it takes the class from the base
    return tokenizer.pad_token_id is not None
