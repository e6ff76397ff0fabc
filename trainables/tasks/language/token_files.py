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
from array import array
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from trainables.cache_folder import cache_folder, remove, remove_unused
from trainables.tasks.care import Cuts
from trainables.tasks.language.sequences import Sequences
from trainables.tasks.mapped import opened
from trainables.tasks.paced import Paced
from trainables.tasks.stored_rows import disk_for

FOLDER = "tokens"
FACTS = "facts.json"
ARRAYS = {"input_ids": "<i4", "targets_mask": "|b1", "offsets": "<i8"}
AT_ONCE = 2**20
"""Tokens that are written at a time."""

_log = logging.getLogger(__name__)


def folder_of(key: str) -> Path:
    """Where the tokens of this key are."""
    return cache_folder() / FOLDER / key


def found(key: str, pad_token_id: int) -> tuple[Sequences, Cuts] | None:
    """The tokens that have been written under this key, and what was cut of the rows; None where
    they are not whole."""
    folder = folder_of(key)
    if (facts := _whole(folder)) is None:
        return None
    input_ids, targets_mask, offsets = (
        opened(str(folder / name), dtype, 0, facts.counts[name]) for name, dtype in ARRAYS.items()
    )
    return Sequences(input_ids, targets_mask, offsets, pad_token_id), facts.cuts


@dataclass(frozen=True)
class _Facts:
    """What `facts.json` says: how many rows and tokens there are, and what was cut."""

    rows: int
    tokens: int
    cuts: Cuts

    @property
    def counts(self) -> dict[str, int]:
        """How many elements each array has."""
        return {
            "input_ids": self.tokens, "targets_mask": self.tokens, "offsets": self.rows + 1,
        }  # fmt: skip


def _whole(folder: Path) -> _Facts | None:
    """What a folder holds, which is then in use; None where it is not there, or not whole."""
    try:
        said = json.loads((folder / FACTS).read_bytes())
        facts = _Facts(said["rows"], said["tokens"], Cuts(**said["cuts"]))
        for name, dtype in ARRAYS.items():
            if (folder / name).stat().st_size != facts.counts[name] * np.dtype(dtype).itemsize:
                return None
        os.utime(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return facts


def write(key: str, examples: Iterable[tuple[Sequence[int], Sequence[bool]]], cuts: Cuts) -> None:
    """Write each row's tokens, and which of them bear loss, under this key, with what has been cut
    once all are written. Raises DataError where the disk is full."""
    folder = folder_of(key)
    with disk_for("its tokens"):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        remove_unused(folder.parent)
        made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        rows, tokens = _write_arrays(made, examples)
        with disk_for("its tokens"):
            with (made / FACTS).open("w") as file:
                json.dump(asdict(_Facts(rows, tokens, cuts)), file)
                file.flush()
                os.fsync(file.fileno())
            if _whole(folder) is None:  # else another process was first, and wrote the same
                if folder.exists():
                    _log.warning("the tokens in %s were not whole; they are made anew", folder)
                remove(folder)
                made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_arrays(
    folder: Path, examples: Iterable[tuple[Sequence[int], Sequence[bool]]]
) -> tuple[int, int]:
    """How many rows and tokens have been written."""
    ids, marks, offsets = array("i"), array("b"), array("q", [0])
    rows = tokens = 0
    say = Paced("task.data: a large set; {:,} rows have become tokens")
    with ExitStack() as stack:
        with disk_for("its tokens"):
            files = [
                stack.enter_context((folder / name).open("wb", buffering=0)) for name in ARRAYS
            ]

        def flush() -> None:
            with disk_for("its tokens"):
                for file, part in zip(files, (ids, marks, offsets), strict=True):
                    left = memoryview(part.tobytes())
                    while left:
                        left = left[file.write(left) :]
                    del part[:]

        for row, bears_loss in examples:
            ids.extend(row)
            marks.extend([False, *bears_loss[1:]])
            rows, tokens = rows + 1, tokens + len(row)
            offsets.append(tokens)
            if len(ids) >= AT_ONCE:
                flush()
                say(rows)
        flush()
        with disk_for("its tokens"):
            for file in files:
                os.fsync(file.fileno())  # so that what is renamed later is whole
    return rows, tokens


def key_of(tokenizer: Any, hashes: Iterable[str], facts: dict[str, Any]) -> str:
    """What names the tokens that a tokenizer makes of rows: `facts` is how."""
    digest = hashlib.sha256()
    made_by = {
        "facts": facts,
        "tokenizer": [type(tokenizer).__qualname__, _state_of(tokenizer)],
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
        "versions": [tokenizers.__version__, transformers.__version__],
    }
    digest.update(json.dumps(made_by, sort_keys=True).encode())
    for each in hashes:
        digest.update(bytes.fromhex(each))
    return digest.hexdigest()


def _state_of(tokenizer: Any) -> Any:
    """All that makes tokens of a text, but for what a call sets anew."""
    if not tokenizer.is_fast:
        return [sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {key: each for key, each in state.items() if key not in ("truncation", "padding")}
