"""Writes the pages under docs/reference/ from the code, so that they say what it does.

    python docs/generate.py

The keys of a sweep and of a choice come from the pydantic models, whose docstrings are the
meanings; the commands come from Typer. A docstring that ends in "; default: ..." tells a default
that depends on other keys or on the environment.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from search.cli.main import app
from search.config.sweep import SweepConfig
from search.schedules.settings import ScheduleSettings
from spaces.alpha import KeysOfASpace, over_rank
from spaces.choice import Choice
from spaces.methods.registry import METHODS

BAR = "&#124;"
FOLDER = Path(__file__).parent / "reference"
NAMES = {
    "null": "`null`",
    "boolean": "`true` or `false`",
    "string": "text",
    "object": "mapping",
}
"""What the page calls a type of JSON."""
MADE = "<!-- Made by docs/generate.py; change the docstrings and run `make docs`. -->\n"

KEYS = """# Keys of the sweep file

Only `base` and `task` are required. A default in *italics* depends on other keys or on the
environment. What belongs together is explained in [The sweep file](../sweep.md), the section
`space` [there too](../sweep.md#the-search-space).
"""
CHOICES = """# Keys of the methods

What a choice may say beside its `method`, and, in the last column, what a sweep searches where it
says nothing else; a key with "-" keeps its default there. `alpha_over_rank` is for a space alone,
in place of `alpha`; learning rates are searched [by the size of the first
update](../sweep.md#learning-rates-and-alpha) where the last column has none. What the methods do is
in [The methods](../methods.md).
"""
SCHEDULES = """# Keys of the schedule file

Only `name` and `sweep` are required. What belongs together is explained in
[Schedules](../schedules.md) and [New models, and who is told of them](../triggers.md).
"""
COMMANDS = """# Options of the commands

What the commands are for, with examples, is in [The commands](../commands.md).
"""


def pages() -> dict[Path, str]:
    """Every page and its text."""
    return {
        FOLDER / "keys.md": _joined(MADE, KEYS, *_sections(SweepConfig.model_json_schema())),
        FOLDER / "schedules.md": _joined(
            MADE, SCHEDULES, *_sections(ScheduleSettings.model_json_schema())
        ),
        FOLDER / "choices.md": _joined(MADE, CHOICES, *_choices()),
        FOLDER / "commands.md": _joined(MADE, COMMANDS, *_commands()),
    }


def _joined(*parts: str) -> str:
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(text: str) -> str:
    """`text` as code in a cell, which a bar would end."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text).replace('|', BAR)}</code>"


# -- the keys --------------------------------------------------------------------------------------


def _sections(schema: Mapping[str, Any]) -> Iterator[str]:
    """A heading, an introduction and a table for each section of a sweep."""
    for path, section in _nested("", schema, schema["$defs"]):
        yield f"## {path or 'Top level'}"
        yield " ".join(section["description"].split())
        required = section.get("required", ())
        rows = [
            (
                _code(key),
                _values(field, path, key),
                "required" if key in required else _default(field),
                _meaning(field, schema["$defs"]),
            )
            for key, field in section["properties"].items()
        ]
        yield _table(("key", "values", "default", "meaning"), rows)


def _nested(
    path: str, section: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, section
    for key, field in section["properties"].items():
        inner = _section_of(field, known)
        if inner is not None:
            yield from _nested(f"{path}.{key}".lstrip("."), inner, known)


def _section_of(field: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a key holds, also one that may be null, or several of."""
    for each in (field, *field.get("anyOf", ()), field.get("items", {})):
        if "$ref" in each:
            found: Mapping[str, Any] = known[each["$ref"].rpartition("/")[2]]
            return found
    return None


def _values(field: Mapping[str, Any], path: str, key: str) -> str:
    """What a key may be, such as "integer from 1" or "`linear`, `cosine` or `constant`"."""
    if "anyOf" in field:
        return _either([_values(each, path, key) for each in field["anyOf"]])
    if "$ref" in field:
        name = f"{path}.{key}".lstrip(".")
        return f"[{name}](#{name.replace('.', '')})"
    if "enum" in field or "const" in field:
        return _either([_code(value) for value in field.get("enum", [field.get("const")])])
    if field["type"] == "array":
        item = _values(field["items"], path, key)
        return "list of " + re.sub(r"^(text|number)", r"\1s", item)
    return f"{NAMES.get(field['type'], field['type'])}{_bounds(field)}"


def _either(values: list[str]) -> str:
    *most, last = dict.fromkeys(values)
    return f"{', '.join(most)} or {last}" if most else last


def _bounds(field: Mapping[str, Any]) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if above is not None and field["type"] == "integer":
        least, above = above + 1, None
    bounds = (("from", least), ("above", above), ("up to", most), ("below", below))
    return ",".join(f" {word} {bound:g}" for word, bound in bounds if bound is not None)


def _default(field: Mapping[str, Any]) -> str:
    _, depends, told = _described(field).partition("; default: ")
    if depends:
        return f"*{told.removesuffix('.')}*"
    return "`{}`" if "$ref" in field else _code(_yaml(field["default"]))


def _meaning(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    meaning, depends, _ = _described(field).partition("; default: ")
    if not meaning and (section := _section_of(field, known)) is not None:
        meaning = " ".join(section["description"].split("\n\n")[0].split())
    return f"{meaning}." if depends else meaning


def _described(field: Mapping[str, Any]) -> str:
    return " ".join(field.get("description", "").split()).replace("|", BAR)


def _yaml(value: Any) -> str:
    """`value` on one line, as a sweep would write it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- the choices -----------------------------------------------------------------------------------


def _choices() -> Iterator[str]:
    yield "## Every method"
    shared = [row[:-1] for row in _choice_rows(Choice, {}) if row[0] != "`method`"]
    yield _table(("key", "values", "default", "meaning"), shared)
    for name, method in METHODS.items():
        rows = [
            row
            for row in _choice_rows(method.choice_class, _flat(method.default_space))
            if row[0].strip("`") not in Choice.model_fields or row[-1] != "-"
        ]
        yield f"## {name}"
        yield " ".join((method.choice_class.__doc__ or "").split())
        if rows:
            yield _table(("key", "values", "default", "meaning", "searched by default"), rows)


def _choice_rows(choice: type[Choice], space: Mapping[str, Any]) -> list[tuple[str, ...]]:
    schema = choice.model_json_schema()
    fields = dict(_flat_fields(schema, schema.get("$defs", {})))
    if "alpha" in fields:
        (key,) = KeysOfASpace.model_fields
        field = KeysOfASpace.model_json_schema()["properties"][key]
        fields[key] = {**field, "default": over_rank(choice, {})}
    return [
        (
            _code(key),
            _values(field, "", key),
            _default(field) if "default" in field else "required",
            _meaning(field, {}),
            _code(_yaml(space[key])) if key in space else "-",
        )
        for key, field in fields.items()
    ]


def _flat_fields(
    section: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Keys as `partition.rule`, each with its field."""
    for key, field in section["properties"].items():
        inner = _section_of(field, known)
        if inner is None:
            yield key, field
        else:
            yield from ((f"{key}.{name}", each) for name, each in _flat_fields(inner, known))


def _flat(space: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> domain; a mapping with `low` is a domain, any other a section."""
    flat: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, Mapping) and "low" not in domain:
            flat |= {f"{key}.{name}": inner for name, inner in domain.items()}
        else:
            flat[key] = domain
    return flat


# -- the commands ----------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    root: Any = typer.main.get_command(app)
    context = root.make_context("ranksweep", [], resilient_parsing=True)
    yield "## Every command"
    yield "`-h` or `--help` shows a command's options. These stand before or behind a command:"
    yield _table(("option", "meaning"), _options(root, context))
    for name, command in root.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            group = command.make_context(name, [], parent=context, resilient_parsing=True)
            for inner_name, inner in command.commands.items():
                yield from _command(inner_name, inner, group)
        else:
            yield from _command(name, command, context)


def _command(name: str, command: Any, parent: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    usage = re.sub(r"[{}]", "", command.get_usage(context)).removeprefix("Usage: ")
    path = re.sub(r"[{}]", "", context.command_path)
    yield f"## {path.removeprefix('ranksweep ')}"
    yield command.help
    yield f"```text\n{usage}\n```"
    yield _table(("option", "meaning"), _options(command, context))


def _options(command: Any, context: Any) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for parameter in command.params:
        if (record := parameter.get_help_record(context)) is None:  # it is hidden
            continue
        name, meaning = record
        shown = re.sub(r" <\w+>$", "", name) if parameter.param_type_name == "argument" else name
        about = re.sub(r"\s+\[(required|default: [^\]]*)\]$", r" (\1)", meaning)
        rows.append((_code(re.sub(r"[<>]", "", shown)), about.replace("|", BAR)))
    return rows


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
