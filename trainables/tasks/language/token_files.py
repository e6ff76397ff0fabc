"""The tokens of a set that is larger than memory: written once, then mapped from files.

A folder in the node's cache holds `input_ids` (int32), `targets_mask` (a byte a token), `offsets`
(int64), each as it lies in memory, and `facts.json`. It is named by the rows and by all that makes
tokens of them, and appears by renaming, so that what is there is whole: the next launch of the same
rows, and every process of this node, maps it. It may be removed whenever no sweep runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from trainables.cache_folder import cache_folder
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.mapped import opened
from trainables.tasks.stored_rows import disk_for

FOLDER = "tokens"
FACTS = "facts.json"
ARRAYS = {"input_ids": "<i4", "targets_mask": "|b1", "offsets": "<i8"}
AT_ONCE = 2**20
"""Tokens that are written at a time."""
UNUSED_S = 30 * 86400.0
"""What has not been used for so long is removed when other tokens are written."""

_log = logging.getLogger(__name__)


def folder_of(key: str) -> Path:
    """Where the tokens of this key are."""
    return cache_folder() / FOLDER / key


def found(key: str, pad_token_id: int) -> tuple[Sequences, list[str]] | None:
    """The tokens that have been written under this key, and what was said then."""
    folder = folder_of(key)
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        os.utime(folder)
    except (OSError, ValueError):
        return None
    counts = {"input_ids": facts["tokens"], "targets_mask": facts["tokens"]}
    counts["offsets"] = facts["rows"] + 1
    arrays = [opened(str(folder / name), dtype, 0, counts[name]) for name, dtype in ARRAYS.items()]
    input_ids, targets_mask, offsets = arrays
    return Sequences(input_ids, targets_mask, offsets, pad_token_id), facts["notes"]


def write(
    key: str,
    examples: Iterable[tuple[Sequence[int], Sequence[bool]]],
    notes: Callable[[], list[str]],
) -> None:
    """Write each row's tokens, and which of them bear loss, under this key, and what `notes` says
    when all rows are written. Raises DataError where the disk is full."""
    folder = folder_of(key)
    with disk_for("its tokens"):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        _remove_unused(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            rows, tokens = _write_arrays(made, examples)
            facts = {"rows": rows, "tokens": tokens, "notes": notes()}
            (made / FACTS).write_text(json.dumps(facts))
            try:
                made.rename(folder)
            except OSError:
                if not (folder / FACTS).is_file():  # else another process was first
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _write_arrays(
    folder: Path, examples: Iterable[tuple[Sequence[int], Sequence[bool]]]
) -> tuple[int, int]:
    """How many rows and tokens have been written."""
    ids, marks, offsets = array("i"), array("b"), array("q", [0])
    rows = tokens = 0
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in ARRAYS]

        def flush() -> None:
            for file, part in zip(files, (ids, marks, offsets), strict=True):
                file.write(part.tobytes())
                del part[:]

        for row, bears_loss in examples:
            ids.extend(row)
            marks.extend([False, *bears_loss[1:]])
            rows, tokens = rows + 1, tokens + len(row)
            offsets.append(tokens)
            if len(ids) >= AT_ONCE:
                flush()
        flush()
    return rows, tokens


def _remove_unused(folder: Path) -> None:
    """Remove what no launch has used for a month, and what was left half written."""
    for entry in folder.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_S:
                shutil.rmtree(entry)
                _log.info("removed the tokens in %s, unused for a month", entry)


def key_of(tokenizer: Any, hashes: Iterable[str], facts: dict[str, Any]) -> str:
    """What names the tokens that a tokenizer makes of rows: `facts` is how."""
    digest = hashlib.sha256()
    made_by = {
        "facts": facts,
        "tokenizer": tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [
            type(tokenizer).__qualname__,
            sorted(tokenizer.get_vocab().items()),
            repr(tokenizer.init_kwargs),
        ],
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "versions": [tokenizers.__version__, transformers.__version__],
    }
    digest.update(json.dumps(made_by, sort_keys=True).encode())
    for each in hashes:
        digest.update(bytes.fromhex(each))
    return digest.hexdigest()
