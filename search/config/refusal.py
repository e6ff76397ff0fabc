"""A sweep that is not valid, told in one line: the key, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from search.config.sweep import SweepConfig
from spaces.errors import nearest


def refusal(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """The first error as "a.b.c: reason", unknown keys before all else, and how many follow."""
    grouped: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    unknown_first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    for details in unknown_first:
        if details["type"] == "extra_forbidden":
            key, reason = _unknown_key(details["loc"])
        else:
            key, reason = _dotted(details["loc"], raw), _reason(details)
            given.setdefault(key, _given(details))
        grouped.setdefault(key, [])
        if reason not in grouped[key]:
            grouped[key].append(reason)
    key, reasons = next(iter(grouped.items()))
    more = f" (and {len(grouped) - 1} more)" if len(grouped) > 1 else ""
    where = f"{key}: " if key else ""
    return " ".join(f"{where}{' or '.join(reasons)}{given.get(key, '')}".split()) + more


def _unknown_key(loc: tuple[int | str, ...]) -> tuple[str, str]:
    *parents, key = loc
    dotted = ".".join(str(part) for part in (*parents, key))
    return dotted, f"unknown key; {nearest(str(key), _fields_at(parents))}"


def _fields_at(parents: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in parents:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
    return list(model.model_fields)


def _dotted(loc: tuple[int | str, ...], raw: Any) -> str:
    """The path as far as the user's own data has it: pydantic appends the branch of a union."""
    path = ""
    for part in loc:
        if isinstance(raw, Mapping) and isinstance(part, str):
            path += f".{part}" if path else part
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            path += f"[{part}]"
            raw = raw[part]
        else:
            break
    return path


def _reason(details: Any) -> str:
    if details["type"] == "missing":
        return "is required; add it"
    message = str(details["msg"]).removeprefix("Value error, ")
    if details["type"] == "value_error":
        return message
    if details["type"] == "model_type":
        return "should be a mapping of its keys"
    return message.replace("Input should", "should")


def _given(details: Any) -> str:
    """What was given instead, where that says more than the message does."""
    given = repr(details["input"])
    wanted = details["type"] not in ("missing", "value_error") and len(given) <= 60
    return f", not {given}" if wanted else ""
