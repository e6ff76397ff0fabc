"""Texts, and how they become the tokens of a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.bases.parts import load_config, load_tokenizer
from trainables.tasks.rows import Rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import Split


@dataclass(frozen=True)
class EncodedSplit:
    """A split as tokens, in flat arrays that can be shared between processes without a copy.

    Row i has the tokens offsets[i] to offsets[i + 1]. `input_ids` int32 [tokens], `offsets` int64
    [n + 1], `token_type_ids` int8 [tokens] or None where the base has none, `labels` int64 [n]:
    indices into the task's labels; `pad_token_id` fills the rows of a batch up.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    token_type_ids: NDArray[np.int8] | None
    labels: NDArray[np.int64]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """A batch of the rows at `indices`, padded on the right to the longest of them.

        input_ids, attention_mask and, where the split has them, token_type_ids are int64 [rows,
        tokens]; labels int64 [rows].
        """
        starts, lengths = self.offsets[indices], self.lengths[indices]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        # A padded place reads some valid token and is overwritten.
        places = np.where(mask, starts[:, None] + steps, 0)
        batch = {
            "input_ids": np.where(mask, self.input_ids[places], self.pad_token_id),
            "attention_mask": mask,
            "labels": self.labels[indices],
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = np.where(mask, self.token_type_ids[places], 0)
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}


def token_splits(
    rows: Mapping[str, Rows], labels: Sequence[str], settings: TaskSettings, base_uri: str
) -> dict[str, Split]:
    """Every split as tokens.

    Raises DataError where a text could be longer than the base takes, or has no token.
    """
    tokenizer = load_tokenizer(base_uri)
    _check_length(settings, tokenizer, base_uri)
    return {
        split: _encode(part, labels, tokenizer, settings.max_length, split)
        for split, part in rows.items()
    }


def _check_length(settings: TaskSettings, tokenizer: Any, base_uri: str) -> None:
    """Raise DataError where inputs could be longer than the base has positions."""
    positions = getattr(load_config(base_uri), "max_position_embeddings", None)
    longest = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    if settings.max_length > longest:
        raise DataError(
            f"task.max_length: {settings.max_length} is more than the {longest} tokens that "
            f"{base_uri} takes; use at most {longest}"
        )


def _encode(
    rows: Rows, labels: Sequence[str], tokenizer: Any, max_length: int, split: str
) -> EncodedSplit:
    """Tokenise a split in one batch: text pairs are cut at the longer text first."""
    columns = [list(column) for column in zip(*rows.inputs, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise DataError(
            f"task.text: {empty.size} rows of {split} have no token, such as "
            f"{rows.inputs[empty[0]]!r:.60}; drop them"
        )
    types = encoded.get("token_type_ids")
    return EncodedSplit(
        input_ids=_flat(encoded["input_ids"], np.int32),
        offsets=np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]),
        token_type_ids=None if types is None else _flat(types, np.int8),
        labels=rows.label_indices(labels),
        pad_token_id=int(tokenizer.pad_token_id),
    )


def _flat(lists: Iterable[Sequence[int]], dtype: type[Any]) -> NDArray[Any]:
    return np.concatenate([np.asarray(numbers, dtype=dtype) for numbers in lists])
