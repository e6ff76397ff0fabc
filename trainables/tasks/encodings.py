"""The characters of a text file: UTF-8, or what its byte order mark says.

A byte that is no UTF-8 becomes a lone surrogate (Python's surrogateescape), so that it is judged
where it stands: in a column that a task asks for, or not at all.
"""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from spaces.errors import DataError

ESCAPED = "surrogateescape"
# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = {
    b"PAR1": "a Parquet file; name it .parquet",
    b"PK\x03\x04": "an archive, as workbooks of Excel are; save it as CSV",
    b"\x1f\x8b": "compressed; unpack it with gunzip",
}


def encoding_of(path: Path, place: str) -> str:
    """The encoding of a file, by its first bytes. Raises DataError where it is empty or no text."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise DataError(f"{place}: is empty; name a file that has rows")
    for mark, what in _OTHER_KINDS.items():
        if start.startswith(mark):
            raise DataError(f"{place}: is {what}")
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    for first, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if 2 * start[first::2].count(0) > len(start) // 2:
            raise DataError(
                f"{place}: is not readable as UTF-8, for it looks like {name} without a mark; "
                f"convert it with `{_iconv(path, name)}`"
            )
    return "utf-8"


def read_text(path: Path, place: str) -> str:
    """The text of a file. Raises DataError where it is cut off in the midst of a character."""
    encoding = encoding_of(path, place)
    try:
        return path.read_bytes().decode(encoding, ESCAPED)
    except UnicodeDecodeError as error:
        raise broken_off(place, encoding) from error


def broken_off(place: str, encoding: str) -> DataError:
    """What to say of a file of two or four bytes a character that cannot be decoded."""
    return DataError(
        f"{place}: is not readable as the {encoding.upper()} that its first bytes promise; write "
        "the file again in UTF-8"
    )


def to_utf8(path: Path) -> str:
    """What to do about bytes that are no UTF-8."""
    return (
        f"if the file was made on Windows, convert it with `{_iconv(path, 'WINDOWS-1252')}`, else "
        "write it again in UTF-8"
    )


def _iconv(path: Path, encoding: str) -> str:
    made = path.with_name(f"utf8-{path.name}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(made))}"
