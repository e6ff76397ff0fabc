"""Tables of text: CSV, and TSV with tabs.

A quoted field may hold anything, line breaks too, so one stray quote mark can make a text of the
rows up to the next. What is refused is therefore: a row with more or fewer fields than the header,
or the header once more, a quote mark that no other closes or that others than a separator follow,
and a field over several lines that look like rows: at least half of them, but the one with the
row's own label, have the header's number of fields, and one of these has a label that other rows
have. Rows without a label say nothing of the last.

TSV has no quotes by its definition, and Excel writes some. Where those of a file do not fit, and
its lines do without them, they are read as they stand.
"""

from __future__ import annotations

import csv
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spaces.errors import DataError
from trainables.tasks.encodings import ESCAPED, broken_off, encoding_of, to_utf8
from trainables.tasks.records import Asked, Records, check_columns, placed

_csv_limit = threading.Lock()
_SEPARATED = {
    "\t": "it is separated by tabs: name it .tsv",
    ";": "it is separated by semicolons: save it with commas, or with tabs as .tsv",
    "|": "it is separated by bars: save it with commas, or with tabs as .tsv",
    ",": "it is separated by commas: name it .csv",
}
"""What to say of a header that such a sign divides."""
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def csv_records(path: Path, place: str, asked: Asked, *, every: bool = False) -> Records:
    """The columns `asked` of a CSV file, or `every` one. Raises DataError where one cannot be had,
    or a row."""
    table = _read(path, place, asked, ",", every=every)
    if faults := table.faults():
        raise DataError(f"{place}: {faults}")
    return table.records(path)


def tsv_records(path: Path, place: str, asked: Asked, *, every: bool = False) -> Records:
    """The same of a TSV file."""
    table = _read(path, place, asked, "\t", every=every)
    if table.misquoted or table.swallowed:
        plain = _read(path, place, asked, "\t", quoted=False, every=every)
        if not plain.faults():
            return plain.records(
                path, f"{place}: its quote marks do not quote fields; they are read as they stand"
            )
    if faults := table.faults():
        raise DataError(f"{place}: {faults}")
    return table.records(path)


@dataclass
class _Table:
    """What has been read of a table: the values of the columns asked for, and the faults.

    `longer`, `shorter` are lines in which rows with more or fewer fields than `width` begin,
    `repeated` those of rows that are the header again, and `misquoted` and `swallowed` first and
    last lines of fields whose quotes are wrong, or seem so.
    """

    width: int
    columns: dict[str, list[object]]
    numbers: list[int] = field(default_factory=list)
    longer: list[int] = field(default_factory=list)
    shorter: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    misquoted: list[tuple[int, int]] = field(default_factory=list)
    swallowed: list[tuple[int, int]] = field(default_factory=list)

    def records(self, path: Path, note: str = "") -> Records:
        return Records(self.columns, self.numbers, "line", note=note, undecoded=to_utf8(path))

    def faults(self) -> str:
        """What is wrong with the rows, and what to do about it; empty where nothing is."""
        rows = len(self.numbers) + len(self.longer) + len(self.shorter) + len(self.misquoted)
        said = []
        for lines, what, remedy in (
            (self.longer, "more", "put texts that hold the separator or quotes into quotes"),
            (self.shorter, "fewer", "fill them up or drop them"),
        ):
            if lines:
                said.append(
                    f"{len(lines)} of {rows} rows have {what} fields than the header's "
                    f"{self.width} ({placed(lines, 'line')}); {remedy}"
                )
        if self.repeated:
            said.append(
                f"has its header again in {placed(self.repeated, 'line')}, as files put together "
                "do; remove it there"
            )
        if self.misquoted:
            said.append(
                f"is not readable as a table: in {len(self.misquoted)} of {rows} rows a quote does "
                f"not close, or has more behind it ({_spans(self.misquoted)}); put texts with "
                'quotes into quotes, and double those inside ("")'
            )
        if self.swallowed:
            said.append(
                f"a quote mark makes one field of several rows ({_spans(self.swallowed)}); remove "
                'or double it (""), or, if these are texts that look like rows, write JSON lines '
                "or Parquet"
            )
        return "; also ".join(said)


def _spans(spans: list[tuple[int, int]]) -> str:
    first, last = spans[0]
    more = f" and {len(spans) - 1} more" if len(spans) > 1 else ""
    return (f"line {first}" if first == last else f"lines {first} to {last}") + more


def _read(
    path: Path,
    place: str,
    asked: Asked,
    delimiter: str,
    quoted: bool = True,
    every: bool = False,
) -> _Table:
    encoding = encoding_of(path, place)
    try:
        with (
            _fields_of_any_length(),
            path.open(encoding=encoding, errors=ESCAPED, newline="") as file,
        ):
            return _parsed(file, place, asked, delimiter, quoted, every)
    except UnicodeDecodeError as error:
        raise broken_off(place, encoding) from error


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Without csv's limit of 131,072 characters a field, which is one for the whole process."""
    with _csv_limit:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _parsed(
    lines: Iterable[str], place: str, asked: Asked, delimiter: str, quoted: bool, every: bool
) -> _Table:
    taken: list[str] = []  # the lines of the row that is being read

    def kept() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    reader = csv.reader(
        kept(),
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    header = _header(reader, taken, place, asked, delimiter)
    label = next((header.index(column) for column, key in asked.items() if key == "label"), None)
    if every:
        check_columns(dict.fromkeys(header, "data"), header, place)  # none twice
    names = header if every else list(asked)
    table = _Table(len(header), {column: [] for column in names})
    values = [(table.columns[column], header.index(column)) for column in names]
    suspects: list[tuple[int, int, list[str | None]]] = []
    while True:
        first = reader.line_num + 1
        taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error:
            table.misquoted.append((first, reader.line_num))
            continue
        if not row:
            continue
        if len(row) != table.width:
            (table.longer if len(row) > table.width else table.shorter).append(first)
            continue
        if row == header or (row[0].startswith("\ufeff") and [row[0][1:], *row[1:]] == header):
            table.repeated.append(first)
            continue
        if len(taken) > 1 and label is not None:
            own = sum(len(_LINE_BREAK.findall(each)) for each in row[:label])
            others = [*taken[:own], *taken[own + 1 :]]
            suspects.append(
                (first, reader.line_num, _labels_of(others, table.width, label, delimiter))
            )
        table.numbers.append(first)
        for column, index in values:
            column.append(row[index])
    known = set() if label is None else set(table.columns[header[label]])
    for first, last, labels in suspects:
        found = [each for each in labels if each is not None]
        if 2 * len(found) >= len(labels) and not known.isdisjoint(found):
            table.swallowed.append((first, last))
    return table


def _header(
    reader: Iterator[list[str]], taken: Sequence[str], place: str, asked: Asked, delimiter: str
) -> list[str]:
    """The names of the columns, of which those asked for are there, once each.

    `taken` holds the lines that the reader has been given.
    """
    try:
        header = next((row for row in reader if row), None)
    except csv.Error as error:
        sign = _sign_of(taken, delimiter)
        remedy = "correct its quotes" if sign == delimiter else _SEPARATED[sign]
        raise DataError(
            f"{place}: is not readable as a table (its first line: {error}); {remedy}"
        ) from error
    if header is None:
        raise DataError(f"{place}: has no rows; name a file that has some")
    hint = ""
    if header[0].startswith("sep=") and len(header) <= 2:
        hint = "; its first line is a note to Excel: delete it, and separate by commas"
    elif (sign := _sign_of(taken, delimiter)) != delimiter:
        hint = f"; {_SEPARATED[sign]}"
    elif not set(asked) & set(header):
        hint = " (as its first line has them; add a line of their names where there is none)"
    check_columns(asked, header, place, hint)
    return header


def _sign_of(taken: Sequence[str], delimiter: str) -> str:
    """The sign that divides the first line with any: `delimiter` unless another is there more."""
    first = next(line for line in taken if line.strip())
    return max((delimiter, *_SEPARATED), key=first.count)


def _labels_of(lines: list[str], width: int, label: int, delimiter: str) -> list[str | None]:
    """The labels of some lines of a row, as rows by themselves; None of what is no row."""
    rows = [line.rstrip("\r\n").split(delimiter) for line in lines if line.strip()]
    return [row[label].strip('"') if len(row) == width else None for row in rows]
