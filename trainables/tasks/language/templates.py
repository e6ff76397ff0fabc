"""Templates that compose a text from the columns of a row: `{column}`, and nothing more.

`{{` and `}}` are braces. Attributes, indices, conversions and format specifications are refused, so
that a template of a sweep reads columns as they are and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from spaces.errors import ConfigError, shown

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<stray>[{}])")
_REMEDY = "write {column}, or {{ and }} for braces"
_AROUND = 20  # characters that an error shows on either side of a stray brace


def columns(template: str) -> tuple[str, ...]:
    """The columns that a template names, each once, in their order.

    Raises ConfigError, which names `task.template`, where it is no template or names no column.
    """
    return tuple(dict.fromkeys(name for _, name in _parsed(template) if name is not None))


def composed(template: str, values: Mapping[str, str]) -> str:
    """The text that a template makes of the `values` of its columns; a brace in a value is text."""
    return "".join(
        text if name is None else text + values[name] for text, name in _parsed(template)
    )


@lru_cache(maxsize=64)
def _parsed(template: str) -> tuple[tuple[str, str | None], ...]:
    """The parts: a text, and the column that follows it, None where none does."""
    parts: list[tuple[str, str | None]] = []
    text, end = "", 0
    for piece in _PIECE.finditer(template):
        text += template[end : piece.start()]
        end = piece.end()
        if piece["stray"] is not None:
            around = template[max(0, piece.start() - _AROUND) : end + _AROUND]
            raise ConfigError(
                f"task.template: has a {piece['stray']!r} that no other closes or opens, in "
                f"{around!r}; {_REMEDY}"
            )
        if piece["brace"] is not None:
            text += piece["brace"][0]
        else:
            parts.append((text, _column(piece["name"])))
            text = ""
    parts.append((text + template[end:], None))
    if len(parts) == 1:
        hint = "; {{ and }} are braces, so write {column}" if "{{" in template else ""
        raise ConfigError(
            f"task.template: names no column{hint or '; write {column} where a value stands'}"
        )
    return tuple(parts)


def _column(name: str) -> str:
    """The column of a field. Raises ConfigError where the field is more than a name."""
    field = shown(f"{{{name}}}", 60)
    if not name.strip():
        raise ConfigError(f"task.template: has a field without a name, {field}; {_REMEDY}")
    if name != name.strip():
        raise ConfigError(
            f"task.template: has white space around the name in {field}; write {{{name.strip()}}}"
        )
    for sign, what in ((".", "an attribute"), ("[", "an index"), ("]", "an index")):
        if sign in name:
            raise ConfigError(
                f"task.template: has {what} in {field}; name a column of strings, such as "
                f"{{{re.split(r'[.[]', name)[0] or 'column'}}}"
            )
    for sign, what in (("!", "a conversion"), (":", "a format specification")):
        if sign in name:
            raise ConfigError(
                f"task.template: has {what} in {field}; a value stands as it is: write "
                f"{{{re.split('[!:]', name)[0].strip() or 'column'}}}"
            )
    if name.isdigit():
        raise ConfigError(f"task.template: has a number for a column in {field}; {_REMEDY}")
    return name
