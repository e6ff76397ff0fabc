"""The records of a split: of a file in Parquet, CSV, TSV or JSON, of a folder that `datasets`
saved, or of a data set on the hub.

Only the columns that a task asks for are read and judged. What a value means is the same whatever
file it comes from: `trainables/tasks/values.py`. What is large is read a part at a time, where its
kind of file has parts: not CSV, where a stray quote is found by the lines behind it, nor an array
of JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from spaces.errors import DataError, reason_of
from trainables.bases.location import package_path
from trainables.tasks.delimited import csv_records, tsv_records
from trainables.tasks.encodings import ESCAPED, broken_off, encoding_of, read_text, to_utf8
from trainables.tasks.records import Asked, Records, check_columns, placed
from trainables.tasks.saved_datasets import is_saved_dataset, saved_splits, saved_tables
from trainables.tasks.settings import TaskSettings
from trainables.tasks.values import NO_UNICODE, TWICE

STREAMED_BYTES = 256 * 2**20
"""From this size on a set is read a part at a time."""
PART = 2**22
"""How much a part holds: characters of lines, or bytes of rows as Arrow holds them."""


def file_records(source: str, place: str, asked: Asked) -> Records:
    """The columns `asked` of a file or a saved data set; `place` is what an error names.

    `source` is a path, or `package:import_name/sub/file`. Raises DataError where there is no such
    file, none that can be read as what its suffix says, or no such column.
    """
    (records,) = file_chunks(source, place, asked, whole=True)
    return records


def file_chunks(source: str, place: str, asked: Asked, *, whole: bool) -> Iterator[Records]:
    """As `file_records`, in parts where it is large, unless it is asked for `whole`."""
    path = located(source, place)
    try:
        if is_saved_dataset(path):
            yield from _saved_chunks(path, place, asked, whole)
            return
        suffix = path.suffix.lower()
        if not whole and suffix in _STREAMS and path.stat().st_size >= STREAMED_BYTES:
            yield from _STREAMS[suffix](path, place, asked)
            return
        records = _READERS[suffix](path, place, asked)
        if not whole and suffix not in _STREAMS and path.stat().st_size >= STREAMED_BYTES:
            said = (
                f"{place}: so large a {suffix} file is read whole; JSON lines and Parquet are not"
            )
            records = replace(records, note="; ".join(filter(None, (records.note, said))))
        yield replace(records, folder=path.parent)
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from error


def hub_chunks(
    task: TaskSettings, split: str, source: str, place: str, asked: Asked, *, whole: bool
) -> Iterator[Records]:
    """The columns `asked` of a split of a hub data set, in parts where it is large, unless it is
    asked for `whole`; from the cache where there is no network.

    Raises DataError where it cannot be had.
    """
    import datasets  # not at the top: it takes a second to import

    data = task.data
    try:
        loaded = datasets.load_dataset(data.hub, data.name, split=source, revision=data.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{place}: cannot be had ({reason_of(error)}); check hub, name and split, or the "
            "network"
        ) from error
    check_columns(asked, loaded.column_names, place)
    loaded = loaded.select_columns(list(asked))
    if isinstance(loaded.features.get(task.image), datasets.Image):
        loaded = loaded.cast_column(task.image, datasets.Image(decode=False))
    at_once = _rows_at_once(loaded.data.nbytes, len(loaded), whole)
    for start in range(0, len(loaded), at_once):
        part = loaded[start : start + at_once]
        columns = {column: part[column] for column in asked}
        yield _part(columns, start, len(loaded))


def _rows_at_once(size: int, rows: int, whole: bool) -> int:
    """How many rows are read at a time of a set of so many bytes and rows."""
    return sys.maxsize if whole or size < STREAMED_BYTES else _rows_of_a_part(size, rows)


def _rows_of_a_part(size: int, rows: int) -> int:
    return max(1, PART * rows // max(1, size))


def _part(columns: Mapping[str, Sequence[object]], start: int, of: int) -> Records:
    """The records that follow the first `start` of `of`."""
    end = start + len(next(iter(columns.values())))
    read_so_far = None if start == 0 and end == of else end
    return Records(columns, range(start + 1, end + 1), read_so_far=read_so_far)


def located(source: str, place: str) -> Path:
    """The file, in an installed package where its name says so. Raises DataError where there is
    none, or of no suffix that is read."""
    if source.startswith("package:"):
        try:
            return package_path(place, source.removeprefix("package:"))
        except FileNotFoundError as error:
            raise DataError(str(error)) from error
    path = Path(os.path.expanduser(source))
    if is_saved_dataset(path) or os.path.isfile(path):  # of os.path, for they never raise
        if os.path.isdir(path) or path.suffix.lower() in _READERS:
            return path
        raise DataError(
            f"{place}: is not a data file; use one that ends in {', '.join(_READERS)}, or a folder "
            "that save_to_disk wrote"
        )
    if splits := saved_splits(path):
        raise DataError(
            f"{place}: holds several splits; name the folder of one, {', '.join(splits)}"
        )
    what = (
        "it is a folder, and none that save_to_disk wrote; name a file"
        if os.path.isdir(path)
        else "there is no such file"
    )
    raise DataError(f"{place}: {what}; check the path or make the data first")


# -- saved data sets -------------------------------------------------------------------------------


def _saved_chunks(path: Path, place: str, asked: Asked, whole: bool) -> Iterator[Records]:
    start = 0
    at_once = partial(_rows_at_once, whole=whole)
    for table, rows in saved_tables(path, place, asked, at_once):
        columns = {column: _python_values(table.column(column)) for column in asked}
        yield replace(_part(columns, start, rows), folder=path)
        start += table.num_rows


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet_records(path: Path, place: str, asked: Asked) -> Records:
    with _parquet(path, place, asked) as file:
        table = file.read(columns=list(asked))
        columns = {column: _python_values(table.column(column)) for column in asked}
        return Records(columns, range(1, table.num_rows + 1))


def _parquet_chunks(path: Path, place: str, asked: Asked) -> Iterator[Records]:
    yield from (records for records, _ in parquet_parts(path, place, asked, list(asked)))


def parquet_parts(
    path: Path,
    place: str,
    asked: Asked,
    kept: list[str] | None = None,
    at_once: int | None = None,
) -> Iterator[tuple[Records, pyarrow.Table]]:
    """The rows of a Parquet file in parts, of `at_once` rows or of `PART` bytes, each with the
    table of its columns `kept`, else of all."""
    start = 0
    # Else a whole row group is read ahead, which may be the whole file.
    with _parquet(path, place, asked, pre_buffer=False, buffer_size=2**20) as file:
        rows = file.metadata.num_rows
        groups = range(file.metadata.num_row_groups)
        size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
        for batch in file.iter_batches(at_once or _rows_of_a_part(size, rows), columns=kept):
            table = pyarrow.Table.from_batches([batch])
            columns = {column: _python_values(table.column(column)) for column in asked}
            yield replace(_part(columns, start, rows), folder=path.parent), table
            start += table.num_rows


@contextmanager
def _parquet(
    path: Path, place: str, asked: Asked, **reading: Any
) -> Iterator[pyarrow.parquet.ParquetFile]:
    """The file, while it is read. Raises DataError where it cannot be, or lacks a column."""
    try:
        # Not read_table, which takes a folder's name such as label=1 for a column.
        with pyarrow.parquet.ParquetFile(path, **reading) as file:
            check_columns(asked, file.schema_arrow.names, place)
            yield file
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{place}: is not readable as Parquet ({reason_of(error)}); write the file again"
        ) from error


def _python_values(column: pyarrow.ChunkedArray) -> list[object]:
    """The values, None where there is none; a string whose bytes are no UTF-8 as NO_UNICODE."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_float16(column.type) or pyarrow.types.is_float32(column.type):
        # 0.1 in 32 bits is 0.1 for its owner, not 0.10000000149011612
        return [None if each is None else float(str(each)) for each in _scalars(column)]
    try:
        values: list[object] = column.to_pylist()
    except UnicodeDecodeError:
        return [_decoded(each) for each in column.cast(pyarrow.large_binary()).to_pylist()]
    return values


def _scalars(column: pyarrow.ChunkedArray) -> list[Any]:
    """The numbers as numpy's, of their own width."""
    of_width = column.type.to_pandas_dtype()
    return [None if each is None else of_width(each) for each in column.to_pylist()]


def _decoded(value: bytes | None) -> object:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return NO_UNICODE


# -- JSON ------------------------------------------------------------------------------------------


def _json_records(path: Path, place: str, asked: Asked) -> Records:
    """Rows of a JSON array of objects, or of one object a line."""
    return _json_whole(path, place, asked)[0]


def _json_whole(path: Path, place: str, asked: Asked) -> tuple[Records, list[Any]]:
    """The same, with the objects themselves."""
    text = read_text(path, place)
    if text.lstrip().startswith("["):
        unit = "row"
        try:
            rows = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise _no_json(place, reason_of(error)) from error
        numbers = list(range(1, len(rows) + 1))
    else:
        unit = "line"
        # A string in JSON has no line break in it, so any of them ends a row.
        lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
        numbered = [(number, line) for number, line in lines if line.strip()]
        numbers = [number for number, _ in numbered]
        rows = _rows_of_lines(numbered, text, place)
    records = Records({}, numbers, unit, undecoded=to_utf8(path))
    _check_objects(rows, records, place)
    if rows:
        check_columns(asked, list(dict.fromkeys(key for row in rows for key in row)), place)
    return replace(records, columns=_columns_of(rows, asked)), rows


def _json_chunks(path: Path, place: str, asked: Asked) -> Iterator[Records]:
    """Rows of one object a line; of an array in one part."""
    yield from (records for records, _ in json_parts(path, place, asked))


def json_parts(
    path: Path, place: str, asked: Asked
) -> Iterator[tuple[Records, list[dict[str, Any]]]]:
    """The same, each part with its objects; a key that one has twice has the value TWICE there."""
    encoding, read = encoding_of(path, place), 0
    with _lines_of(path, place, encoding) as lines:
        there: set[str] = set()
        while part := _within(lines, PART):
            if not read and part[0][1].lstrip().startswith("["):
                records, rows = _json_whole(path, place, asked)
                yield replace(records, folder=path.parent), rows
                return
            read += len(part)
            described = Records(
                {}, [number for number, _ in part], "line", path.parent,
                undecoded=to_utf8(path), read_so_far=read,
            )  # fmt: skip
            rows = _objects(part, described, place)
            there |= {key for row in rows for key in row}
            if not there >= asked.keys():  # the rows to come may have it
                there |= _keys_of(path, place, encoding)
                check_columns(asked, list(there), place)
            yield replace(described, columns=_columns_of(rows, asked)), rows


def _keys_of(path: Path, place: str, encoding: str) -> set[str]:
    """Every key of the objects of a file, a line each, of those that are objects."""
    keys: set[str] = set()
    with _lines_of(path, place, encoding) as lines:
        while part := _within(lines, PART):
            keys |= {key for row in _parsed(part)[0] if type(row) is dict for key in row}
    return keys


@contextmanager
def _lines_of(path: Path, place: str, encoding: str) -> Iterator[Iterator[tuple[int, str]]]:
    """The lines of a file that are not blank, with their numbers."""
    try:
        with path.open(encoding=encoding, errors=ESCAPED) as file:
            # Python ends a line where `_json_records` does.
            lines = ((number, line.rstrip("\n")) for number, line in enumerate(file, start=1))
            yield ((number, line) for number, line in lines if line.strip())
    except UnicodeDecodeError as error:
        raise broken_off(place, encoding) from error


def _within(lines: Iterator[tuple[int, str]], characters: int) -> list[tuple[int, str]]:
    """The next lines, until they have so many characters."""
    taken: list[tuple[int, str]] = []
    left = characters
    while left > 0 and (line := next(lines, None)) is not None:
        taken.append(line)
        left -= len(line[1])
    return taken


def _objects(numbered: list[tuple[int, str]], described: Records, place: str) -> list[Any]:
    """The object of each line. Raises DataError where one is no JSON, or something else."""
    rows, broken, reason = _parsed(numbered)
    if broken:
        said = f"{len(broken)} of {described.how_many}, {placed(broken, 'line')}: {reason}"
        raise DataError(
            f"{place}: is not readable as JSON ({said}); correct or write it again, one object a "
            "line"
        )
    _check_objects(rows, described, place)
    return rows


def _check_objects(rows: list[Any], described: Records, place: str) -> None:
    """Raise DataError where a row is no object."""
    others = [i for i, row in enumerate(rows) if type(row) is not dict]
    if others:
        raise DataError(
            f"{place}: holds something else than objects in {described.where(others)}; give one "
            "object a row"
        )


def _columns_of(rows: list[Any], asked: Asked) -> dict[str, list[object]]:
    """The values of each column, None in a row that lacks it."""
    return {column: [row.get(column) for row in rows] for column in asked}


def _rows_of_lines(numbered: list[tuple[int, str]], text: str, place: str) -> list[Any]:
    rows, broken, reason = _parsed(numbered)
    if not broken:
        return rows
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        where = f"{len(broken)} of {len(numbered)} rows, {placed(broken, 'line')}: {reason}"
        raise _no_json(place, where) from None
    raise DataError(
        f"{place}: is one JSON value over several lines; give an array of objects "
        "or one object a line (pandas: to_json(orient='records', lines=True))"
    )


def _parsed(numbered: list[tuple[int, str]]) -> tuple[list[Any], list[int], str]:
    """The value of each line that is JSON, the numbers of the others, and what the first lacks."""
    rows: list[Any] = []
    broken: list[int] = []
    reason = ""
    for number, line in numbered:
        try:
            rows.append(json.loads(line, object_pairs_hook=_object))
        except (ValueError, RecursionError) as error:
            broken.append(number)
            reason = reason or reason_of(error)
    return rows, broken, reason


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; a key that is there twice has the value TWICE."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        made |= {key: TWICE for key in made if keys.count(key) > 1}
    return made


def _no_json(place: str, reason: str) -> DataError:
    return DataError(f"{place}: is not readable as JSON ({reason}); correct or write it again")


_READERS: Mapping[str, Callable[[Path, str, Asked], Records]] = {
    ".parquet": _parquet_records,
    ".csv": csv_records,
    ".tsv": tsv_records,
    ".tab": tsv_records,
    ".json": _json_records,
    ".jsonl": _json_records,
}

_STREAMS: Mapping[str, Callable[[Path, str, Asked], Iterator[Records]]] = {
    ".parquet": _parquet_chunks,
    ".json": _json_chunks,
    ".jsonl": _json_chunks,
}
