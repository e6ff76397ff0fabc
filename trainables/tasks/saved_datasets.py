"""Folders that `save_to_disk` of the package `datasets` wrote, as a source of rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.errors import DataError, reason_of
from trainables.tasks.records import Asked, check_columns

if TYPE_CHECKING:
    import pyarrow

_OF_ONE = ("state.json", "dataset_info.json")
"""What `Dataset.save_to_disk` writes beside the rows."""
_OF_SEVERAL = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` writes beside a folder for each split."""


def is_saved_dataset(source: str | os.PathLike[str]) -> bool:
    """Whether there is a folder that `Dataset.save_to_disk` wrote: that of one split."""
    path = os.path.expanduser(source)  # of os.path, for it never raises
    return all(os.path.isfile(os.path.join(path, name)) for name in _OF_ONE)


def saved_splits(path: Path) -> list[str]:
    """The folders of the splits, where `DatasetDict.save_to_disk` wrote several; else none."""
    try:
        splits = json.loads((path / _OF_SEVERAL).read_bytes())["splits"]
        return [str(path / split) for split in splits]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def saved_tables(
    path: Path, place: str, asked: Asked, at_once: Callable[[int, int], int]
) -> Iterator[tuple[pyarrow.Table, int]]:
    """The columns `asked` of a saved data set, as Arrow, as many rows at a time as `at_once` says
    of the bytes that all of them take, and of their number; and that number.

    So a value means what it does in Parquet, and a picture is not decoded. `place` is what an error
    names. Raises DataError where it cannot be read, or has no such column.
    """
    import datasets  # not at the top: they take long to import, and the settings ask for folders
    import pyarrow

    broken = (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException)
    try:
        loaded = datasets.load_from_disk(str(path))
        check_columns(asked, loaded.column_names, place)
        loaded = loaded.select_columns(list(asked)).with_format("arrow")
        rows = len(loaded)
        step = at_once(loaded.data.nbytes, rows)
        for start in range(0, max(1, rows), step):
            yield loaded[start : start + step], rows
    except broken as error:
        raise DataError(
            f"{place}: is not readable as a saved data set ({reason_of(error)}); save it again "
            "with save_to_disk"
        ) from error
