"""JSON that comes from outside: refused before it can cost more than it is worth."""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from typing import Any

from spaces.errors import shown

DEEPEST = 32
"""How many lists and objects may stand within each other."""

# What the smallest value, an empty list in a list, costs Python; and what any file may use.
_BYTES_PER_VALUE = 100
_ALLOWANCE = 16 * 2**20


def parsed(text: str | bytes, file_size: int) -> Any:
    """The value that `text` holds, of a file of `file_size` bytes.

    Beyond what JSON itself forbids, a key that stands twice, a number that is not finite, text that
    is no Unicode, nesting deeper than `DEEPEST` and more values than a small multiple of the file's
    size could hold are refused. Raises ValueError with the reason, one line.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}") from error
    if _BYTES_PER_VALUE * _most_values(text) > _ALLOWANCE + 8 * file_size:
        raise ValueError(f"more values than {file_size} bytes can be worth")
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST}") from error
    _check(value)
    return value


def _most_values(text: str) -> int:
    return 1 + sum(text.count(mark) for mark in "[{,:")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {shown(key)} stands twice")
    return mapping


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _check(value: Any) -> None:
    """Raise ValueError where a value is too deep, not finite or not Unicode."""
    level = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.keys())
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, float) and not isfinite(item):
                raise ValueError("a number is too large")
            elif isinstance(item, str) and not _is_unicode(item):
                raise ValueError(f"{shown(item)} is no Unicode text")
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {DEEPEST}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
