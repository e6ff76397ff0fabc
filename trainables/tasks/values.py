"""What a value of a data file means, alike for every kind of file.

A class or a text is what CSV would hold: a string as it stands, words such as nan, NA and null too;
a number or a boolean as Python writes it, so 1, 1.0 and True are three classes, and 1 is the same
class as "1". Nothing is there where the value is null, NaN, or a string without a visible
character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum, auto

from trainables.tasks.records import Records


class Unreadable(Enum):
    """What stands in place of a value that a reader cannot give."""

    TWICE = auto()
    NO_UNICODE = auto()


TWICE = Unreadable.TWICE
NO_UNICODE = Unreadable.NO_UNICODE
INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]+")
"""White space of every alphabet, and characters that take no place at all."""
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")  # a byte, where a file was not UTF-8
_A_NUMBER = re.compile(r"\s*[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?\s*")


def is_missing(value: object) -> bool:
    """Whether there is nothing: null, NaN, or a string without a visible character."""
    if isinstance(value, str):
        return not value or INVISIBLE.fullmatch(value) is not None
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def is_a_number(text: str) -> bool:
    """Whether a text is a number and nothing else."""
    return _A_NUMBER.fullmatch(text) is not None


def strings_of(records: Records, column: str, what: str) -> tuple[list[str], list[str]]:
    """The values of a column as strings, and what is wrong with them, a fault in a line.

    `what` is a word for a value: "text" or "class". The strings are of use where no fault is.
    """
    values = records.columns[column]
    strings: list[str] = []
    missing: list[int] = []
    broken: list[int] = []
    undecoded: list[int] = []
    twice: list[int] = []
    other: list[int] = []
    for index, value in enumerate(values):
        if is_missing(value):
            missing.append(index)
        elif isinstance(value, str):
            if _NO_CHARACTER.search(value):
                (undecoded if _UNDECODED.search(value) else broken).append(index)
            strings.append(value)
        elif isinstance(value, bool | int | Decimal) or (
            isinstance(value, float) and math.isfinite(value)
        ):
            strings.append(str(value))
        elif isinstance(value, Unreadable):
            (twice if value is TWICE else undecoded).append(index)
        else:
            other.append(index)
    faults = []
    if missing:
        faults.append(
            f"no {what} in {column!r} in {records.where(missing)}; fill it in, or drop these rows"
        )
    if other:
        example = values[other[0]]
        faults.append(
            f"{type(example).__name__} {example!r:.40} in {column!r} in {records.where(other)}; a "
            f"{what} is a string, a number or a boolean"
        )
    if broken:
        faults.append(
            f"what is no character (NUL, or half of a surrogate pair) in {column!r} in "
            f"{records.where(broken)}; correct or drop these rows"
        )
    if undecoded:
        faults.append(
            f"bytes that are no UTF-8 in {column!r} in {records.where(undecoded)}; "
            f"{records.undecoded}"
        )
    if twice:
        faults.append(f"{column!r} twice in {records.where(twice)}; keep one in a row")
    return strings, faults


def kinds_of(values: Sequence[object]) -> list[str]:
    """The kinds of the values of a column in words, such as numbers and strings."""
    named = {bool: "booleans", int: "integers", float: "fractions", Decimal: "fractions"}
    return sorted({named.get(type(value), "strings") for value in values})


def numbers_of(records: Records, column: str) -> tuple[list[float], list[str]]:
    """The values of a column as finite numbers, and what is wrong with them, a fault in a line.

    A number may stand in a string. The numbers are of use where no fault is.
    """
    strings, faults = strings_of(records, column, "number")
    if faults:
        return [], faults
    numbers = [float(each) if is_a_number(each) else math.nan for each in strings]
    wrong = [index for index, number in enumerate(numbers) if not math.isfinite(number)]
    if wrong:
        faults.append(
            f"{strings[wrong[0]]!r:.40} in {column!r} in {records.where(wrong)}, which is no "
            "finite number; correct or drop these rows, or use kind: classification"
        )
    return numbers, faults
