"""The columns of a data file that a task asks for, and how an error says where in it a fault is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from spaces.errors import DataError, shown

Asked = Mapping[str, str]
"""Column -> the key of the section `task` that names it."""
FIRST = 5  # rows that an error names; it counts the others
MOST_NAMES = 20  # columns that an error lists


@dataclass(frozen=True)
class Records:
    """The values of each column that was asked for, one a record, as the file has them.

    `numbers` says where each record is, counted from 1: the line it begins in where `unit` is
    "line", else the row. Relative paths among the values start from `folder`, None where there is
    none. `note` is what a user should know of how the file was read, and `undecoded` what to do
    about bytes that are no UTF-8. `read_so_far` is how many records of the file have been read with
    them, where they are a part of it; None where they are all.
    """

    columns: Mapping[str, Sequence[object]]
    numbers: Sequence[int]
    unit: str = "row"
    folder: Path | None = None
    note: str = ""
    undecoded: str = "write the file again"
    read_so_far: int | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def between(self, start: int, end: int) -> Records:
        """Those records from the one at `start` up to the one at `end`."""
        end = min(end, len(self))
        if (start, end) == (0, len(self)):
            return self
        part = {name: values[start:end] for name, values in self.columns.items()}
        before = 0 if self.read_so_far is None else self.read_so_far - len(self)
        numbers = self.numbers[start:end]
        return replace(self, columns=part, numbers=numbers, read_so_far=before + end)

    def where(self, indices: Sequence[int]) -> str:
        """Of how many records the ones at `indices` are, and where the first of them lie."""
        lying = placed((self.numbers[i] for i in indices), self.unit)
        return f"{len(indices)} of {self.how_many} ({lying})"

    @property
    def how_many(self) -> str:
        """How many records there are, or have been read so far, in words."""
        if self.read_so_far is None:
            return f"{len(self)} rows"
        return f"the first {self.read_so_far:,} rows"


def placed(numbers: Iterable[int], unit: str) -> str:
    """The first of some lines or rows in words, such as "lines 3, 9 and 20"."""
    known = list(numbers)
    words = [str(number) for number in known[:FIRST]]
    if len(known) > FIRST:
        words.append(f"{len(known) - FIRST} more")
    if len(words) == 1:
        return f"{unit} {words[0]}"
    return f"{unit}s {', '.join(words[:-1])} and {words[-1]}"


def check_columns(asked: Asked, names: Sequence[str], place: str, hint: str = "") -> None:
    """Raise DataError where a column that is asked for is not there, or there twice.

    `hint` is what may have gone wrong where one is missing.
    """
    for column, key in asked.items():
        if column not in names:
            close = get_close_matches(column, names, n=1, cutoff=0.6)
            named = [name if name == name.strip() else repr(name) for name in names[:MOST_NAMES]]
            listed = ", ".join(shown(name, 40) for name in named)
            if len(names) > MOST_NAMES:
                listed += f" and {len(names) - MOST_NAMES} more"
            tail = f"did you mean {shown(repr(close[0]))}? " if close and not hint else ""
            raise DataError(
                f"task.{key}: {place} has no column {column!r}; {tail}its columns are {listed}"
                f"{hint}"
            )
        if names.count(column) > 1:
            raise DataError(
                f"task.{key}: {place} has {names.count(column)} columns named {column!r}; give "
                "each a name of its own"
            )
