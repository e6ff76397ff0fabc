"""Rows of a set that is larger than memory: they lie in a file, and memory holds where.

Memory takes some 60 bytes a row, however long its texts are: its SHA-256, where it lies, and its
place in the order of content. The file has no name, so it is gone with the process that wrote it,
whichever way that ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.cache_folder import FOLDER_VARIABLE, cache_folder

Parts = tuple[tuple[str, ...], str]
"""A row's inputs and its label."""


@contextmanager
def disk_for(what: str) -> Iterator[Path]:
    """The folder for what does not fit into memory, made where it is not there.

    Raises DataError where the block fails to write into it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise DataError(
            f"task.data: the set is too large to be held in memory, and {what} cannot be written "
            f"in {folder} ({error.strerror or error}); make room there, or name another folder in "
            f"{FOLDER_VARIABLE}"
        ) from error


class RowFile:
    """Rows in a file without a name, each as the JSON that its content hash is taken of."""

    def __init__(self) -> None:
        with disk_for("its rows") as folder:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._ends = array("q", [0])
        self.digests = bytearray()

    def extend(self, inputs: Iterable[Sequence[str]], labels: Iterable[str]) -> None:
        """Add rows. Raises DataError where the disk is full."""
        lines = []
        for row, label in zip(inputs, labels, strict=True):
            line = canonical(row, label)
            self.digests += hashlib.sha256(line).digest()
            self._ends.append(self._ends[-1] + len(line))
            lines.append(line)
        with disk_for("its rows"):
            self._file.write(b"".join(lines))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def columns(self) -> tuple[StoredInputs, StoredLabels, Digests]:
        """Inputs, labels and content hashes in content order; nothing is added any more."""
        with disk_for("its rows"):
            self._file.flush()
        digests = np.frombuffer(self.digests, dtype=np.uint8).reshape(-1, 32)
        # Stable, as Python's sort: rows that are alike keep the order that they came in.
        order = np.lexsort(digests.view(">u8").T[::-1])
        return StoredInputs(self, order), StoredLabels(self, order), Digests(digests, order)

    def read(self, place: int) -> Parts:
        """The row that came at this place."""
        begin, end = self._ends[place], self._ends[place + 1]
        inputs, label = json.loads(os.pread(self._file.fileno(), end - begin, begin))
        return tuple(inputs), label


def canonical(inputs: Sequence[Any], label: str) -> bytes:
    """The canonical JSON of a row, of which its content hash is the SHA-256."""
    return json.dumps([list(inputs), label], separators=(",", ":")).encode()


class Stored(Sequence[Any]):
    """A part of every row of a file, in an order; reading one reads it from the file."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._at(int(self._order[index]))

    def __iter__(self) -> Iterator[Any]:
        return map(self._at, map(int, self._order))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """Those at `indices`, in the order of `indices`."""
        taken = copy(self)
        taken._order = self._order[np.asarray(indices, dtype=np.int64)]
        return taken

    def _at(self, place: int) -> Any:
        raise NotImplementedError


class StoredInputs(Stored):
    """The inputs of each row."""

    def __init__(self, rows: RowFile, order: NDArray[np.int64]) -> None:
        super().__init__(order)
        self._rows = rows

    def _at(self, place: int) -> tuple[str, ...]:
        return self._rows.read(place)[0]


class StoredLabels(StoredInputs):
    """The label of each row."""

    def _at(self, place: int) -> Any:
        return self._rows.read(place)[1]


class Digests(Stored):
    """The content hash of each row, in hex."""

    def __init__(self, digests: NDArray[np.uint8], order: NDArray[np.int64]) -> None:
        super().__init__(order)
        self._digests = digests

    def _at(self, place: int) -> str:
        return bytes(self._digests[place]).hex()
