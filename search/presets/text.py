"""A preset as a sweep file for people: its YAML, and what stands in it for which reason."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import yaml

from search.presets.preset import Preset
from search.presets.tables import Section

WIDTH = 100
LONGEST_LINE = 80
"""Characters of a list or a mapping that is not written in lines of its own."""
_Node = TypeVar("_Node", yaml.SequenceNode, yaml.MappingNode)


class _Dumper(yaml.SafeDumper):
    """YAML that repeats itself in place of anchors, with texts of many lines in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value is written out where it stands again: always."""
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """A text, in double quotes where it has line breaks: a prompt ends where it ends."""
        style = '"' if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)  # type: ignore[no-untyped-call]

    def represent_sequence(self, *arguments: Any, **options: Any) -> yaml.SequenceNode:
        """A list, on a line of its own where it fits."""
        return _fitted(super().represent_sequence(*arguments, **options))

    def represent_mapping(self, *arguments: Any, **options: Any) -> yaml.MappingNode:
        """A mapping, on a line of its own where it fits."""
        return _fitted(super().represent_mapping(*arguments, **options))


def _fitted(node: _Node) -> _Node:
    inner = [each for part in node.value for each in (part if isinstance(part, tuple) else (part,))]
    if sum(len(str(each.value)) + 2 for each in inner) > LONGEST_LINE:
        node.flow_style = False
    return node


_Dumper.add_representer(str, _Dumper.represent_text)


def sweep_file(preset: Preset, file: str | None = None) -> str:
    """The whole sweep file of a preset, commented; `file` is what it will be called."""
    return "\n\n".join("\n".join(part) for part in _parts(preset, file)) + "\n"


def _parts(preset: Preset, file: str | None) -> Iterator[list[str]]:
    table = preset.table
    also = f", with the values of Table {table.hyperparameters}" if table.hyperparameters else ""
    yield [
        *_comment(f"{preset.paper.paper}, Table {table.table}{also}: {preset.task} on "
                  f"{preset.base_key}."),
        "#",
        f"#   ranksweep launch {file or f'{preset.name}.yaml'}",
        f"#   ranksweep compare {preset.name}",
        "#",
        *_comment('"given" is what the paper says of the section below, "chosen" what it does '
                  "not, and what was set here in its place."),
    ]  # fmt: skip
    for key, value in preset.sweep().items():
        yield [*_remarks(preset, key), *_yaml({key: value})]


def _remarks(preset: Preset, key: str) -> Iterator[str]:
    if key == "published":
        yield from _comment("Figures as printed; `compare` sets them beside what is measured here.")
    elif key in get_args(Section):
        section: Section = key  # type: ignore[assignment]
        for word, remarks in (("given", preset.given(section)), ("chosen", preset.chosen(section))):
            for remark in remarks:
                yield from _comment(f"{word}: {remark}")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def _yaml(section: dict[str, Any]) -> list[str]:
    """A section in blocks, its innermost mappings and lists on lines of their own."""
    (value,) = section.values()
    text = yaml.dump(
        _plain(section),
        Dumper=_Dumper,
        default_flow_style=None if isinstance(value, dict) else False,
        sort_keys=False,
        width=WIDTH,
        allow_unicode=True,
    )
    return text.rstrip("\n").split("\n")


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
