"""A data file written again with more columns: what is told of its rows stands beside them.

It is read as strictly as a task's own data are (trainables/tasks/files.py), a part at a time but
for CSV and arrays of JSON; the other values stay as they are in the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from spaces.errors import DataError
from trainables.tasks.delimited import csv_records, tsv_records
from trainables.tasks.encodings import ESCAPED
from trainables.tasks.files import json_parts, parquet_parts
from trainables.tasks.records import Asked, Records

New = Mapping[str, Sequence[Any]]
"""New columns by name."""
Parts = Generator[tuple[Records, Callable[[New], None]]]
"""Some rows of a file, and what writes them with their new columns."""


def beside(path: Path, place: str, asked: Asked, out: Path, at_once: int) -> Parts:
    """The columns `asked` of a file, `at_once` rows at a time; each part is to be written in turn,
    into a new file `out` of the same kind, which is whole once all are.

    `place` is what an error names. Raises DataError where the file cannot be read or has no such
    column, and where a new column has the name of one that is there.
    """
    return _KINDS[path.suffix.lower()](path, place, asked, out, at_once)


def _check_new(new: New, there: Sequence[str], place: str) -> None:
    for name in new:
        if name in there:
            raise DataError(
                f"{place}: has a column {name!r}, as a new one is to be called; rename it, or put "
                "something before the names of the new ones (--prefix)"
            )


def _text(out: Path) -> IO[str]:
    return out.open("w", encoding="utf-8", errors=ESCAPED, newline="")


# -- tables of text --------------------------------------------------------------------------------


def _table(
    read: Callable[..., Records], delimiter: str,
    path: Path, place: str, asked: Asked, out: Path, at_once: int,
) -> Parts:  # fmt: skip
    records = replace(read(path, place, asked, every=True), folder=path.parent)
    names = list(records.columns)
    with _text(out) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")

        def write(part: Records, new: New) -> None:
            if not file.tell():
                _check_new(new, names, place)
                writer.writerow([*names, *new])
            told = (map(_cell, values) for values in new.values())
            writer.writerows(zip(*part.columns.values(), *told, strict=True))

        for start in range(0, len(records), at_once):
            part = records.between(start, start + at_once)
            yield part, partial(write, part)


def _cell(value: Any) -> Any:
    """A value as a table of text has it: lists as JSON."""
    return json.dumps(value) if isinstance(value, list) else value


# -- JSON ------------------------------------------------------------------------------------------


def _json(path: Path, place: str, asked: Asked, out: Path, at_once: int) -> Parts:
    before, between, after = ("[\n", ",\n", "\n]\n") if _is_array(path) else ("", "\n", "\n")
    written = 0
    with _text(out) as file:
        file.write(before)

        def write(rows: Sequence[Mapping[str, Any]], new: New) -> None:
            nonlocal written
            for row, *told in zip(rows, *new.values(), strict=True):
                _check_new(new, list(row), place)
                line = _line({**row, **dict(zip(new, told, strict=True))}, place)
                file.write(f"{between if written else ''}{line}")
                written += 1

        for records, rows in json_parts(path, place, asked):
            whole = replace(records, folder=path.parent)
            for start in range(0, len(records), at_once):
                some = rows[start : start + at_once]
                yield whole.between(start, start + at_once), partial(write, some)
        file.write(after)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1024)
    return start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"[")


def _line(row: Mapping[str, Any], place: str) -> str:
    def refused(value: object) -> Any:
        raise DataError(f"{place}: an object has a key twice; keep one of each")

    line = json.dumps(row, ensure_ascii=False, default=refused)
    try:
        line.encode("utf-8", ESCAPED)
    except UnicodeEncodeError:  # half a pair of surrogates, which JSON can write
        return json.dumps(row, default=refused)
    return line


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet(path: Path, place: str, asked: Asked, out: Path, at_once: int) -> Parts:
    writer: pyarrow.parquet.ParquetWriter | None = None

    def write(table: pyarrow.Table, new: New) -> None:
        nonlocal writer
        if writer is None:
            _check_new(new, table.column_names, place)
        for name, values in new.items():
            known = _type_of(values) if writer is None else writer.schema.field(name).type
            table = table.append_column(name, pyarrow.array(values, type=known))
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(out, table.schema)
        writer.write_table(table)

    try:
        for records, table in parquet_parts(path, place, asked, at_once=at_once):
            yield records, partial(write, table)
    finally:
        if writer is not None:
            writer.close()


def _type_of(values: Sequence[Any]) -> pyarrow.DataType:
    """The type of a new column by its first part; where that has no value, a text."""
    found = pyarrow.array(values).type
    return pyarrow.string() if pyarrow.types.is_null(found) else found


_KINDS: Mapping[str, Callable[[Path, str, Asked, Path, int], Parts]] = {
    ".parquet": _parquet,
    ".csv": partial(_table, csv_records, ","),
    ".tsv": partial(_table, tsv_records, "\t"),
    ".tab": partial(_table, tsv_records, "\t"),
    ".json": _json,
    ".jsonl": _json,
}
