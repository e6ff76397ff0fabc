"""What a user should know of a task's rows before a launch: what is odd about them, a line each,
and how long they are."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import shown
from trainables.tasks.values import is_a_number

if TYPE_CHECKING:
    from trainables.tasks.kinds.kind import Kind
    from trainables.tasks.rows import Rows
    from trainables.tasks.settings import TaskSettings
    from trainables.tasks.split import Split

FEW = 3
"""So many rows stand for all that are alike."""
BEGINNING = 60
"""Characters of a row that show which it is."""


def notes_on_rows(splits: Mapping[str, Rows], kind: Kind, settings: TaskSettings) -> Iterator[str]:
    """What is odd about rows of any kind, a line each, which begins with the key that it is of."""
    yield from _shared(splits, kind.input_word(settings))
    yield from _repeated(splits)
    yield from _contradicting(splits, kind, settings)
    key = f"task.{next(iter(kind.input_columns(settings).values()))}"
    for split, rows in splits.items():
        yield from _lost_characters(split, rows, key)
    if "train" in splits:
        yield from _numbers(splits["train"], kind, key)


def _numbers(train: Rows, kind: Kind, key: str) -> Iterator[str]:
    """Which columns of train hold numbers alone, by the first value of each."""
    first: tuple[Any, ...] = ()
    left: set[int] = set()
    for number, row in enumerate(train.inputs):
        asked = kind.question(row)
        if number == 0:
            first, left = asked, set(range(len(asked)))
        left = {i for i in left if isinstance(text := asked[i], str) and is_a_number(text)}
        if not left:
            return
    for column in sorted(left):
        yield (
            f"{key}: every text of train is a number, such as {first[column]!r:.40}; see that "
            "it is the column of texts"
        )


def _hashed(values: Iterable[Hashable]) -> NDArray[np.int64]:
    """Python's hash of each value, by which values are told apart that need not be kept."""
    return np.fromiter(map(hash, values), dtype=np.int64)


def _shared(splits: Mapping[str, Rows], what: str) -> Iterator[str]:
    """How many of dev and test train has too."""
    if "train" not in splits:
        return
    train = _hashed(splits["train"].inputs)
    for split, rows in splits.items():
        if split == "train":
            continue
        if shared := int(np.isin(_hashed(rows.inputs), train).sum()):
            yield (
                f"task.data.{split}: {shared} of {len(rows)} rows have the {what} of "
                f"a training row; its measure is too good for an unseen {what}"
            )


def _repeated(splits: Mapping[str, Rows]) -> Iterator[str]:
    """How many rows of each split are there already, answer and all."""
    repeated = {split: _again(rows.hashes) for split, rows in splits.items()}
    said = [
        f"{number:,} of {len(splits[split]):,} rows of {split} ({number / len(splits[split]):.1%})"
        for split, number in repeated.items()
        if number
    ]
    if said:
        yield (
            f"task.data: {', '.join(said)} repeat another one exactly; drop them unless they are "
            "to count twice"
        )


def _again(hashes: Iterable[str]) -> int:
    """How many of some hashes in order follow one like them."""
    return sum(one == other for one, other in pairwise(hashes))


def _contradicting(splits: Mapping[str, Rows], kind: Kind, settings: TaskSettings) -> Iterator[str]:
    """How many rows ask what another one of their split does and answer otherwise, and the first
    few of what they ask."""
    counts: list[str] = []
    named: list[str] = []
    asked_otherwise = 0
    for split, rows in splits.items():
        number, asked = _answered_otherwise(rows, kind, settings)
        if number:
            counts.append(f"{number:,} {'of' if counts else 'rows of'} {split}")
        asked_otherwise += len(asked)
        for those in asked[: FEW - len(named)]:
            given = dict.fromkeys(
                kind.answered(rows.inputs[i], rows.labels[i], settings)[1] for i in those
            )
            named.append(
                f"{shown(kind.words(rows.inputs[those[0]], settings), BEGINNING)!r} "
                f"({', '.join(repr(shown(answer, 20)) for answer in list(given)[:FEW])})"
            )
    if counts:
        more = f" and {asked_otherwise - FEW:,} more" if asked_otherwise > FEW else ""
        yield (
            f"task.data: {', '.join(counts)} have the {kind.input_word(settings)} of another one "
            f"and another answer: {'; '.join(named)}{more}; see which is right"
        )


def _answered_otherwise(
    rows: Rows, kind: Kind, settings: TaskSettings
) -> tuple[int, list[NDArray[np.int64]]]:
    """How many rows ask what another one does and answer otherwise, and the indices of the rows of
    each such question, the question that comes first in front."""
    asked, answers = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    for index, (row, label) in enumerate(zip(rows.inputs, rows.labels, strict=True)):
        one, other = kind.answered(row, label, settings)
        asked[index], answers[index] = hash(one), hash(other)
    order = np.lexsort((answers, asked))  # stable, so the rows of a question and answer stay so
    begins = np.flatnonzero(np.diff(asked[order], prepend=asked[order][:1] - 1))
    changes = np.diff(answers[order], prepend=0) != 0
    changes[begins] = False
    differing = np.add.reduceat(changes, begins, dtype=np.int64) > 0
    found = [np.sort(of) for of, is_so in zip(np.split(order, begins[1:]), differing, strict=True)
             if is_so]  # fmt: skip
    return sum(map(len, found)), sorted(found, key=lambda of: int(of[0]))


def _lost_characters(split: str, rows: Rows, key: str) -> Iterator[str]:
    lost = sum(
        "\ufffd" in text
        for texts, label in zip(rows.inputs, rows.labels, strict=True)
        for text in (*texts, label)
        if isinstance(text, str)
    )
    if lost:
        yield (
            f"{key}: {lost} texts of {split} hold U+FFFD, which stands for characters that "
            "were lost when the data was converted; convert it again from its source"
        )


# -- how long rows are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LongRow:
    """A row that few are as long as: where it is, its tokens, and how it begins."""

    split: str
    tokens: int
    begins: str


def longest_rows(
    rows: Mapping[str, Rows], splits: Mapping[str, Split], kind: Kind, settings: TaskSettings
) -> tuple[LongRow, ...]:
    """The longest rows of all splits, the longest first; of those that were cut the ones with most
    characters. Nothing where all rows are of one length by nature, as pictures are."""
    if kind.reads == "picture":
        return ()
    found: list[tuple[int, int, str, int]] = []
    for name, part in rows.items():
        # A copy, for a split keeps its lengths, and would take them to every worker.
        lengths = copy(splits[name]).lengths
        most = np.partition(lengths, max(0, len(lengths) - FEW))[max(0, len(lengths) - FEW)]
        of_part = (
            (int(lengths[i]), sum(len(str(text)) for text in part.inputs[i]), name, i)
            for i in map(int, np.flatnonzero(lengths >= most))
        )
        found = heapq.nlargest(FEW, chain(found, of_part), key=lambda each: each[:2])
    return tuple(
        LongRow(name, tokens, shown(kind.words(rows[name].inputs[i], settings), BEGINNING))
        for tokens, _, name, i in found
    )


def quantiles(lengths: NDArray[np.int64]) -> tuple[int, int]:
    """The tokens that half of the rows, and 95 % of them, do not go beyond."""
    middle, high = np.quantile(lengths, [0.5, 0.95], method="inverted_cdf")
    return int(middle), int(high)


# -- what a maximum length cuts --------------------------------------------------------------------


@dataclass
class Cuts:
    """How many rows of a split have lost tokens to `max_length`, and of how many the answer has."""

    rows: int = 0
    answers: int = 0

    def note(self, split: str, rows: int, max_length: int) -> str | None:
        """That in words; None where nothing was cut."""
        if not self.rows:
            return None
        of_answers = f"; {self.answers:,} answers lose their end" if self.answers else ""
        return (
            f"task.max_length: {self.rows:,} of {rows:,} rows of {split} ({self.rows / rows:.1%}) "
            f"are cut at {max_length} tokens{of_answers}"
        )
