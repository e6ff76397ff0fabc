"""What makes inputs of texts and pictures, written beside a trained model as the trial used it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import transformers

from trainables.bases.location import (
    CHAT_TEMPLATE,
    MORE_CHAT_TEMPLATES,
    TOKENIZER_FILES,
    chat_template_files,
    locate,
    processor_files,
)
from trainables.bases.parts import load_tokenizer, quiet
from trainables.tasks.kinds.usage import Tokenizing

_TOKENIZER_CONFIG = "tokenizer_config.json"


def write_processor(uri: str, folder: Path, tokenizing: Tokenizing | None) -> None:
    """Copy the files of a base's tokenizer and image processor, as far as it has them.

    The tokenizer does by itself what the trial did, as `tokenizing` says (None: as the base has
    it). One inside a GGUF file, one without a padding token, or one that cannot be read from this
    folder alone is written anew, with the padding token that the model was trained with.
    """
    path = locate(uri)
    for name in (*processor_files(path), *chat_template_files(path)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path / name, folder / name)
    if path.is_file() or (_has_tokenizer(folder) and not _can_be_used(folder)):
        load_tokenizer(uri).save_pretrained(folder)
    if tokenizing is not None and _has_tokenizer(folder):
        config = folder / _TOKENIZER_CONFIG
        said = json.loads(config.read_text()) if config.is_file() else {}
        said["padding_side"] = tokenizing.padding_side
        if tokenizing.max_length is not None:
            said["model_max_length"] = tokenizing.max_length
        if tokenizing.chat_template is not None:
            _put_chat_template(folder, said, tokenizing.chat_template)
        config.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")


def _put_chat_template(folder: Path, said: dict[str, Any], template: str) -> None:
    """Make it the one chat template of the tokenizer, in place of all that its base has."""
    said.pop("chat_template", None)
    for file in folder.glob(MORE_CHAT_TEMPLATES):
        file.unlink()
    if (others := folder / Path(MORE_CHAT_TEMPLATES).parent).is_dir():
        others.rmdir()
    (folder / CHAT_TEMPLATE).write_text(template)


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
