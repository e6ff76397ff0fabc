"""A sweep that is not valid, told in one line: the key, the reason and the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from search.config.published import PublishedSettings
from search.config.sweep import SweepConfig
from spaces.choice import Choice
from spaces.methods.registry import METHODS
from spaces.refusals import WANTED, unknown_key, written_right


def refusal(
    error: ValidationError, raw: Mapping[str, Any], whole: type[BaseModel] = SweepConfig
) -> str:
    """The first error as "a.b.c: reason", unknown keys before all else, and how many follow.

    `whole` is the model that `raw` was to be, a sweep or another file.
    """
    grouped: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    unknown_first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    for details in unknown_first:
        if details["type"] == "extra_forbidden":
            key, reason = _unknown_key(_in_the_file(details, raw, whole), whole)
        else:
            place = _in_the_file(details, raw, whole)
            key, reason = _dotted(place, raw), _reason(details)
            if details["type"] in ("literal_error", "enum", *WANTED) and _may_be_null(place, whole):
                reason += " or null"
            given.setdefault(key, _given(details))
        grouped.setdefault(key, [])
        if reason not in grouped[key]:
            grouped[key].append(reason)
    for key in [*grouped]:  # of the forms that a value may have, the one that got furthest
        if any(other.startswith((f"{key}.", f"{key}[")) for other in grouped):
            del grouped[key]
    key, reasons = next(iter(grouped.items()))
    more = f" (and {len(grouped) - 1} more)" if len(grouped) > 1 else ""
    where = f"{key}: " if key else ""
    return " ".join(f"{where}{' or '.join(reasons)}{given.get(key, '')}".split()) + more


def _may_be_null(loc: Sequence[int | str], whole: type[BaseModel]) -> bool:
    if not loc:
        return False
    field = _model_at(loc[:-1], whole).model_fields.get(str(loc[-1]))
    return field is not None and NoneType in get_args(field.annotation)


def _unknown_key(loc: tuple[int | str, ...], whole: type[BaseModel]) -> tuple[str, str]:
    *parents, key = loc
    dotted = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*parents, key)
    ).removeprefix(".")
    outer, dot, inner = str(key).partition(".")
    if dot and whole is SweepConfig:
        return (
            dotted,
            f"unknown key; dots are for --set, in a file write `{outer}: {{{inner}: ...}}`",
        )
    return dotted, unknown_key(str(key), _model_at(parents, whole).model_fields, _paths(whole))


def _model_at(parents: Sequence[int | str], whole: type[BaseModel]) -> type[BaseModel]:
    model = whole
    for part in parents:
        field = model.model_fields.get(str(part))
        model = (_section(field.annotation) if field is not None else None) or model
    return model


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a section, one that may be null or of another form too, or a
    list of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) not in (Annotated, Union, UnionType, tuple):
        return None
    return next(filter(None, map(_section, get_args(annotation))), None)


def _paths(whole: type[BaseModel]) -> dict[str, list[str]]:
    """Each key of a file -> where it stands; of a sweep the keys of methods among them."""
    paths: dict[str, list[str]] = {}

    def note(model: type[BaseModel], inside: str) -> None:
        for key, field in model.model_fields.items():
            paths.setdefault(key, []).append(f"{inside}{key}")
            # Nobody who writes `metric` or `unit` elsewhere means what a paper prints.
            if (section := _section(field.annotation)) and section is not PublishedSettings:
                note(section, f"{inside}{key}.")

    note(whole, "")
    if whole is not SweepConfig:
        return paths
    for method in METHODS.values():
        for key in set(method.choice_class.model_fields) - set(Choice.model_fields):
            paths.setdefault(key, [])
            if "space.methods.METHOD." + key not in paths[key]:
                paths[key].append("space.methods.METHOD." + key)
    return paths


def _in_the_file(details: Any, raw: Any, whole: type[BaseModel]) -> tuple[int | str, ...]:
    """Where an error is, without the names that pydantic has for the forms of a value."""
    loc = details["loc"]
    found: list[int | str] = []
    for place, part in enumerate(loc):
        is_key = (
            isinstance(part, int)
            or (isinstance(raw, Mapping) and part in raw)
            or part in _model_at(found, whole).model_fields
            or (details["type"] == "missing" and place == len(loc) - 1)
        )
        if not is_key:
            continue
        found.append(part)
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
    return tuple(found)


def _dotted(loc: tuple[int | str, ...], raw: Any) -> str:
    """The path as far as the user's own data has it."""
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
    kind = details["type"]
    if kind == "missing":
        return "is required; add it"
    if kind in WANTED:
        return f"should be {WANTED[kind]}"
    message = str(details["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    if kind in ("model_type", "dict_type"):
        return "should be a mapping of its keys"
    if kind == "tuple_type":
        return "should be a list"
    if kind == "too_short":
        what = "is too short" if details["input"] else "is empty"
        return f"{what}; give at least {details['ctx']['min_length']}"
    if kind == "invalid_key":
        return "is no name of a key; put it in quotes"
    return message.replace("Input should", "should")


def _given(details: Any) -> str:
    """What was given instead, where that says more than the message does, and what to write."""
    kind, value = details["type"], details["input"]
    given = repr(list(value) if isinstance(value, tuple) else value)
    wanted = kind not in ("missing", "value_error", "invalid_key", "too_short")
    given = {"None": "null", "True": "true", "False": "false"}.get(given, given)  # as YAML has it
    shown = f", not {given}" if wanted and len(given) <= 60 else ""
    if kind in WANTED:
        return f"{shown}; {written_right(kind, value)}"
    if kind == "model_type" and isinstance(value, str) and re.fullmatch(r"\w+:[^/\s]+", value):
        return f"{shown}; write a space after the colon"
    if kind == "model_type" and value is False:
        return f"{shown}; write null for none"
    return shown
