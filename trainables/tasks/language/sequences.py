"""The tokens of a split for a language model, and the passes that its rows go through a base in.

A pass is the keyword arguments of a base: input_ids [rows, positions] and logits_to_keep [columns],
which the LM head computes alone. Beside them, to be taken out before the base is called, are labels
[targets], the id of each target, and places [targets], where it is predicted, in
logits.flatten(0, 1); and, where lines of packed rows are filled up, is_token bool [lines,
positions], false for padding. The others are int64. A loss sums over the same targets whichever
passes the rows go through.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.tasks.grouping import in_lines, within_budget
from trainables.tasks.reading import EVALUATION_TOKENS
from trainables.tasks.split import Pass
from trainables.tasks.work import Work

TOKENS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Sequences:
    """The tokenised rows of a split, one after another in flat arrays.

    input_ids int32 [tokens]; targets_mask bool [tokens], true where a token bears loss, which is to
    be predicted from the tokens before it: never a row's first; offsets int64 [n + 1], row i is
    offsets[i] up to offsets[i + 1]. pad_token_id fills up a padded pass. `packs` says whether the
    base computes a pack exactly (`trainables.bases.packing`).
    """

    input_ids: NDArray[np.int32]
    targets_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    pad_token_id: int
    packs: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if (self.lengths < 1).any():
            raise ValueError(f"row {self.lengths.argmin()} has no token")
        if self.targets_mask[self.offsets[:-1]].any():
            raise ValueError("the first token of a row is predicted from nothing, so is no target")

    @classmethod
    def of(
        cls, examples: Iterable[tuple[Sequence[int], Sequence[bool]]], pad_token_id: int
    ) -> Sequences:
        """From each row's token ids and which of them bear loss; a first token's mark is dropped.

        Raises ValueError where a row has no token, or its two sequences are not of one length.
        """
        tokens, marks, offsets = array("i"), array("b"), array("q", [0])
        for i, (ids, bears_loss) in enumerate(examples):
            if len(ids) != len(bears_loss):
                raise ValueError(f"row {i} has {len(ids)} tokens but {len(bears_loss)} marks")
            tokens.extend(ids)
            marks.extend([False, *bears_loss[1:]] if len(ids) else [])
            offsets.append(len(tokens))
        return cls(
            np.array(tokens, dtype=np.int32),
            np.array(marks, dtype=np.bool_),
            np.array(offsets, dtype=np.int64),
            pad_token_id,
        )

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each row has, int64 [n]."""
        return np.diff(self.offsets)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """How many tokens of each row bear loss, int64 [n]."""
        counts = np.empty(len(self), np.int64)
        begin = 0
        while begin < len(self):  # in parts, for numpy would make the whole mask int64
            most = self.offsets[begin] + TOKENS_AT_ONCE
            end = max(begin + 1, int(np.searchsorted(self.offsets, most, side="right")) - 1)
            part = self.targets_mask[self.offsets[begin] : self.offsets[end]]
            starts = self.offsets[begin:end] - self.offsets[begin]
            counts[begin:end] = np.add.reduceat(part, starts, dtype=np.int64)
            begin = end
        return counts

    def first(self, rows: int) -> Self:
        """At most so many rows."""
        offsets = self.offsets[: rows + 1]
        tokens = slice(0, int(offsets[-1]))
        return replace(
            self,
            input_ids=self.input_ids[tokens],
            targets_mask=self.targets_mask[tokens],
            offsets=offsets,
        )

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> list[Pass]:
        """The rows at `indices` in the passes that cost least."""
        passes = in_lines(self.lengths[indices], on_cpu=on_cpu, packs=self.packs)
        return [
            self.batch(indices[np.concatenate(lines)])
            if all(len(line) == 1 for line in lines)
            else self.packed([indices[line] for line in lines])
            for lines in passes
        ]

    def work(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Work:
        """What the passes of the rows at `indices` put through a base."""
        return Work.of_tokens(self.passes(indices, on_cpu))

    def measuring_work(self, on_cpu: bool) -> Work:
        """What finding each row's loss puts through a base, whatever computes it."""
        return Work.of_tokens(
            self.batch(indices) for indices in within_budget(self.lengths, EVALUATION_TOKENS)
        )

    def batch(self, indices: NDArray[np.integer[Any]]) -> Pass:
        """The rows at `indices` in one pass, padded at their ends to the longest.

        attention_mask [rows, positions] is there only where rows are padded.
        """
        lengths, flat = self.lengths[indices], self._positions(indices)
        is_token = np.arange(lengths.max()) < lengths[:, None]
        made = self._pass(is_token, flat)
        if not is_token.all():
            made["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        return made

    def packed(self, lines: Sequence[NDArray[np.integer[Any]]]) -> Pass:
        """Lines of rows one after another, each line filled up with a row of padding.

        position_ids [lines, positions] begin anew at each row. From them transformers finds the
        rows and keeps each from seeing another with a block mask (`create_causal_mask`), though
        only where there is neither an attention mask nor a cache of keys.
        """
        sums = np.array([self.lengths[line].sum() for line in lines])
        is_token = np.arange(sums.max()) < sums[:, None]
        indices = np.concatenate(lines)
        lengths, flat = self.lengths[indices], self._positions(indices)
        begins = np.cumsum(lengths) - lengths
        # A line's padding counts from where the line's tokens end.
        position_ids = np.arange(sums.max()) - np.where(is_token, 0, sums[:, None])
        position_ids[is_token] = np.arange(len(flat)) - np.repeat(begins, lengths)
        made = self._pass(is_token, flat)
        made["position_ids"] = torch.from_numpy(position_ids)
        if not is_token.all():
            made["is_token"] = torch.from_numpy(is_token)
        return made

    def _positions(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Where the tokens of the rows at `indices` stand in the flat arrays, row after row."""
        lengths = self.lengths[indices]
        shifts = self.offsets[indices] - (np.cumsum(lengths) - lengths)
        positions: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(shifts, lengths)
        return positions

    def _pass(self, is_token: NDArray[np.bool_], flat: NDArray[np.int64]) -> Pass:
        """The pass [lines, positions] that holds the tokens at `flat` where `is_token` says so.

        Each target is predicted at the position before its own.
        """
        input_ids = np.full(is_token.shape, self.pad_token_id, dtype=np.int64)
        input_ids[is_token] = self.input_ids[flat]
        is_target = np.zeros(is_token.shape, dtype=np.bool_)
        is_target[is_token] = self.targets_mask[flat]
        is_predicted = is_target[:, 1:]
        lines, columns = is_predicted.nonzero()
        kept = np.flatnonzero(is_predicted.any(axis=0))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "logits_to_keep": torch.from_numpy(kept),
            "labels": torch.from_numpy(input_ids[:, 1:][is_predicted]),
            "places": torch.from_numpy(lines * len(kept) + np.searchsorted(kept, columns)),
        }
