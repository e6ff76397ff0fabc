"""Texts, and how they become the tokens of a base."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from spaces.errors import DataError, shown
from trainables.bases.limits import text_limits
from trainables.bases.parts import load_tokenizer
from trainables.tasks.care import Cuts
from trainables.tasks.grouping import of_like_length
from trainables.tasks.reading import by_length
from trainables.tasks.rows import ASKED, Rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import Pass, Split
from trainables.tasks.work import Work

SOME_UNKNOWN, MOST_UNKNOWN = 0.05, 0.5
"""Shares of unknown tokens: from here it is said, and from here texts are noise to the base."""
MOST_ALIKE = 0.9
FEWEST_TEXTS = 10  # of fewer, alike is no sign
"""The share of texts that may be the same tokens: no data to be learned are that uniform."""
FEWEST_TOKENS = 0.5
"""The least share of an embedding that a tokenizer fills: padding to a round number is far less."""

logger = logging.getLogger(__name__)


class HasTokens(Protocol):
    """Rows as tokens: row i has the tokens offsets[i] to offsets[i + 1]."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...

    @property
    def offsets(self) -> NDArray[np.int64]: ...


class TokenRows(NamedTuple):
    """`HasTokens` and nothing more."""

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """From the tokens of each row."""
        tokens = np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])
        return cls(tokens, np.cumsum([0, *map(len, rows)]))


@dataclass(frozen=True)
class EncodedSplit:
    """A split as tokens, in flat arrays that can be shared between processes without a copy.

    Row i has the tokens offsets[i] to offsets[i + 1]. `input_ids` int32 [tokens], `offsets` int64
    [n + 1], `token_type_ids` int8 [tokens] or None where the base has none, `labels` [n]: int64
    indices into the task's classes, or float64 numbers; `pad_token_id` fills the rows of a batch
    up.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    token_type_ids: NDArray[np.int8] | None
    labels: NDArray[Any]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def targets(self) -> NDArray[np.int64]:
        """One a row: its label."""
        return np.ones(len(self), np.int64)

    def first(self, rows: int) -> EncodedSplit:
        """At most so many rows."""
        offsets = self.offsets[: rows + 1]
        types = self.token_type_ids
        return replace(
            self,
            input_ids=self.input_ids[: offsets[-1]],
            offsets=offsets,
            token_type_ids=None if types is None else types[: offsets[-1]],
            labels=self.labels[:rows],
        )

    def passes(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> list[Pass]:
        """The rows at `indices`, on a CPU those of like length together."""
        if not on_cpu:
            return [self.batch(indices)]
        groups = of_like_length(self.lengths[indices])
        return [self.batch(indices[group]) for group in groups]

    def work(self, indices: NDArray[np.integer[Any]], on_cpu: bool) -> Work:
        """What the passes of the rows at `indices` put through a base."""
        return Work.of_tokens(self.passes(indices, on_cpu))

    def measuring_work(self, on_cpu: bool) -> Work:
        """Rows of like length together."""
        return Work.of_tokens(self.batch(indices) for indices in by_length(self, on_cpu))

    def batch(self, indices: NDArray[np.integer[Any]]) -> Pass:
        """A batch of the rows at `indices`, padded on the right to the longest of them.

        input_ids, attention_mask and, where the split has them, token_type_ids are int64 [rows,
        tokens]; labels [rows].
        """
        starts, lengths = self.offsets[indices], self.lengths[indices]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        # A padded place reads some valid token and is overwritten.
        places = np.where(mask, starts[:, None] + steps, 0)
        batch = {
            "input_ids": np.where(mask, self.input_ids[places], self.pad_token_id),
            "attention_mask": mask,
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = np.where(mask, self.token_type_ids[places], 0)
        made = {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items()}
        return made | {"labels": torch.from_numpy(self.labels[indices])}


def token_splits(
    rows: Mapping[str, Rows],
    labels: Mapping[str, NDArray[Any]],
    settings: TaskSettings,
    head: str,
    base_uri: str,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Every split as tokens, with what each row's label is to the loss, and a line for each split
    of which rows are cut.

    Raises DataError where a text could be longer than the base takes, or is nothing to it: without
    a token, of unknown tokens, or of tokens that its embedding does not hold. Says aloud what else
    shows that tokenizer and base do not belong together.
    """
    limits = text_limits(base_uri, head)
    tokenizer = load_tokenizer(base_uri)
    check_length(settings, tokenizer, limits.tokens, base_uri)
    splits = {
        split: _encode(part, labels[split], tokenizer, settings.max_length, split)
        for split, part in rows.items()
    }
    for split, encoded in splits.items():
        check_vocabulary(encoded, rows[split], tokenizer, limits.vocabulary, split, base_uri)
        _check_types(encoded, limits.types, split, base_uri)
        if split != ASKED:
            _check_unknown(encoded, tokenizer, settings, split, base_uri)
        _check_ends(encoded, rows[split], limits.end, split, base_uri)
    check_padding(tokenizer, limits.vocabulary, base_uri)
    first = next(iter(splits))  # train, unless a suite's member is encoded
    if first != ASKED:
        _check_told_apart(splits[first], rows[first], settings, base_uri)
    _warn_of_size(len(tokenizer), limits.vocabulary, base_uri)
    notes = (
        _cuts(encoded, rows[split], tokenizer, settings.max_length).note(
            split, len(encoded), settings.max_length
        )
        for split, encoded in splits.items()
    )
    return dict(splits), tuple(note for note in notes if note is not None)


def _cuts(encoded: EncodedSplit, rows: Rows, tokenizer: Any, max_length: int) -> Cuts:
    """How many rows have more tokens than they were given: those that are full are read again."""
    full = np.flatnonzero(np.diff(encoded.offsets) == max_length)
    if not full.size:
        return Cuts()
    columns = [list(column) for column in zip(*(rows.inputs[int(i)] for i in full), strict=True)]
    whole = tokenizer(*columns, padding=False, verbose=False)["input_ids"]
    return Cuts(sum(len(ids) > max_length for ids in whole))


def check_length(
    settings: TaskSettings, tokenizer: Any, positions: int | None, base_uri: str
) -> None:
    """Raise DataError where inputs could be longer than the base takes, or hold no text."""
    texts = max(1, len(settings.text))
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if settings.max_length < special + texts:
        raise DataError(
            f"task.max_length: {settings.max_length} leaves no room for a text beside the "
            f"{special} special tokens of {base_uri}; use at least {special + texts}"
        )
    said = [positions, tokenizer.model_max_length]  # the file of a tokenizer may hold anything
    longest = min((n for n in said if isinstance(n, int | float) and n > 0), default=None)
    if longest is not None and settings.max_length > longest:
        raise DataError(
            f"task.max_length: {settings.max_length} is more than the {longest} tokens that "
            f"{base_uri} takes; use at most {longest}"
        )


def check_padding(tokenizer: Any, vocabulary: int | None, base_uri: str) -> None:
    """Raise DataError where the base's embedding has no vector for the padding token."""
    if vocabulary is not None and tokenizer.pad_token_id >= vocabulary:
        raise DataError(
            f"base: {base_uri} has padding token {tokenizer.pad_token_id}, but its embedding holds "
            f"{vocabulary} tokens; set pad_token in tokenizer_config.json to one of those"
        )


def _encode(
    rows: Rows, labels: NDArray[Any], tokenizer: Any, max_length: int, split: str
) -> EncodedSplit:
    """Tokenise a split: text pairs are cut at the longer text first."""
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int8]] | None = []
    for inputs, _ in rows.blocks():
        columns = [list(column) for column in zip(*inputs, strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
        ids += [np.asarray(each, dtype=np.int32) for each in encoded["input_ids"]]
        of_block = encoded.get("token_type_ids")
        if types is None or of_block is None:
            types = None
        else:
            types += [np.asarray(each, dtype=np.int8) for each in of_block]
    lengths = np.array([len(each) for each in ids], dtype=np.int64)
    if (empty := np.flatnonzero(lengths == 0)).size:
        raise DataError(
            f"task.text: {empty.size} rows of {split} have no token, such as "
            f"{rows.inputs[empty[0]]!r:.60}; drop them"
        )
    return EncodedSplit(
        input_ids=np.concatenate(ids),
        offsets=np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]),
        token_type_ids=None if types is None else np.concatenate(types),
        labels=labels,
        pad_token_id=int(tokenizer.pad_token_id),
    )


def check_vocabulary(
    encoded: HasTokens,
    rows: Rows,
    tokenizer: Any,
    vocabulary: int | None,
    split: str,
    base_uri: str,
) -> None:
    """Raise DataError where a row has a token for which the base's embedding has no vector."""
    if vocabulary is None or encoded.input_ids.max() < vocabulary:
        return
    place = int(np.argmax(encoded.input_ids >= vocabulary))
    token = int(encoded.input_ids[place])
    row = int(np.searchsorted(encoded.offsets, place, side="right")) - 1
    raise DataError(
        f"task.text: a row of {split}, {_shown(rows, row)}, has "
        f"token {token} ({tokenizer.convert_ids_to_tokens(token)!r}), but the embedding of "
        f"{base_uri} holds {vocabulary} tokens; use the tokenizer of that base, or enlarge its "
        "embedding with resize_token_embeddings"
    )


def _check_types(encoded: EncodedSplit, types: int | None, split: str, base_uri: str) -> None:
    """Raise DataError where the texts of a pair are of more types than the base embeds."""
    if types is None or encoded.token_type_ids is None:
        return
    if (most := int(encoded.token_type_ids.max())) >= types:
        raise DataError(
            f"task.text: the tokenizer of {base_uri} gives tokens of {split} the type {most}, but "
            f"the base embeds {types} types; use the tokenizer of that base"
        )


def _check_ends(
    encoded: EncodedSplit, rows: Rows, end: int | None, split: str, base_uri: str
) -> None:
    """Raise DataError where the end token, at which the base reads a row, is not in each alike."""
    if end is None:
        return
    if end == encoded.pad_token_id:
        raise DataError(
            f"base: {base_uri} reads a text at its end token, with which batches are filled up "
            "too; set another pad_token in tokenizer_config.json"
        )
    ends = np.add.reduceat(encoded.input_ids == end, encoded.offsets[:-1], dtype=np.int64)
    usual = int(np.bincount(ends).argmax())  # a pair has ends of its own: two of T5, three of BART
    if usual == 0 or (ends != usual).any():
        row = int(np.argmax(ends != (usual or -1)))
        raise DataError(
            f"task.text: a row of {split}, {_shown(rows, row)}, has the end token of {base_uri} "
            f"{ends[row]} times, at which it reads a text; take it out of the text, or use a "
            "tokenizer that ends texts with it"
        )


def _shown(rows: Rows, row: int) -> str:
    return repr(shown(" ".join(map(str, rows.inputs[row])), 60))


def _check_unknown(
    encoded: EncodedSplit, tokenizer: Any, settings: TaskSettings, split: str, base_uri: str
) -> None:
    """Say how many tokens are unknown to the tokenizer; raise DataError where most are."""
    unknown = tokenizer.unk_token_id
    # GPT-2's tokenizer names its end token here, and knows every byte.
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    special = len(encoded) * tokenizer.num_special_tokens_to_add(pair=len(settings.text) == 2)
    share = int((encoded.input_ids == unknown).sum()) / max(1, len(encoded.input_ids) - special)
    said = (
        f"task.text: {share:.0%} of the tokens of {split} are unknown ({tokenizer.unk_token}) to "
        f"the tokenizer of {base_uri}"
    )
    if share > MOST_UNKNOWN:
        raise DataError(
            f"{said}, so that it does not read these texts; check its tokenizer files, or use a "
            "base for such texts"
        )
    if share > SOME_UNKNOWN:
        logger.warning("%s; a base for such texts may do better", said)


def _check_told_apart(
    encoded: EncodedSplit, rows: Rows, settings: TaskSettings, base_uri: str
) -> None:
    """Raise DataError where nearly all the different texts of a split are the same tokens."""
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    made = {
        texts: encoded.input_ids[start:end].tobytes()
        for texts, (start, end) in zip(rows.inputs, bounds, strict=True)
    }
    most = max(Counter(made.values()).values())
    if len(made) >= FEWEST_TEXTS and most > MOST_ALIKE * len(made):
        raise DataError(
            f"task.text: {most} of {len(made)} different texts of train are the same tokens to "
            f"{base_uri} within task.max_length ({settings.max_length}); check its tokenizer "
            "files, or raise task.max_length"
        )


def _warn_of_size(tokens: int, vocabulary: int | None, base_uri: str) -> None:
    """Say where tokenizer and embedding differ by more than padding to a round number."""
    if vocabulary is not None and not FEWEST_TOKENS * vocabulary <= tokens <= vocabulary:
        logger.warning(
            "base: %s has a tokenizer of %d tokens and an embedding of %d; make sure that they "
            "belong together",
            base_uri,
            tokens,
            vocabulary,
        )
