"""YAML files read strictly: one document of plain data, no key twice, every key a plain name."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import ConfigError
from spaces.refusals import character_name, odd_character

DEEPEST = 50
"""Levels of nesting; a sweep has five."""
MOST_VALUES = 100_000
"""Values that a document may stand for, its aliases written out."""

_INT, _FLOAT, _STR, _NULL, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("int", "float", "str", "null", "merge")
)
_READ_BY_OTHERS_AS_TEXT = (_INT, _FLOAT, "tag:yaml.org,2002:timestamp")
_NO_PLAIN_DATA = ("binary", "timestamp", "omap", "pairs", "set")
_READ_AS = {
    _INT: "a number",
    _FLOAT: "a number",
    _NULL: "nothing",
    "tag:yaml.org,2002:bool": "true or false",
}


class _Loader(yaml.SafeLoader):
    """YAML in which a number is what everyone takes for one, and every key is a plain name.

    PyYAML follows YAML 1.1, where 5e-5 is a text, 010 is eight, 1:30 is ninety and 2024-01-01 is no
    text. Of merge keys it takes the wrong value where what is merged has merged before.
    """

    def __init__(self, text: str, words: Collection[str] = ()) -> None:
        super().__init__(text)
        self._words = words
        self._depth = 0
        self._unfinished: set[str] = set()
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, once it is known to be harmless and to have plain keys."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor in self._unfinished:
                raise _RefusedError(event, f"*{anchor}", "stands for itself; write its value out")
            return super().compose_node(parent, index)
        if self._depth >= DEEPEST:
            raise _RefusedError(event, "", f"is nested more than {DEEPEST} deep; flatten it")
        self._depth += 1
        if anchor is not None:
            self._unfinished.add(anchor)
        node = super().compose_node(parent, index)
        self._unfinished.discard(anchor or "")
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            if self._depth == 0:
                self._take_words(node)
            _check_keys(node)
            node.value = _merged(node)
        self._weigh(node)
        return node

    def _take_words(self, node: yaml.MappingNode) -> None:
        """Keys of the document itself that are words here, such as `on`, which YAML 1.1 takes for
        true."""
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in self._words:
                key.tag = _STR

    def _weigh(self, node: yaml.Node | None) -> None:
        inner = getattr(node, "value", None)
        parts: list[yaml.Node] = []
        if isinstance(inner, list):
            parts = [
                part for each in inner for part in (each if isinstance(each, tuple) else [each])
            ]
        size = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > MOST_VALUES:
            raise _RefusedError(
                node, "", f"stands for more than {MOST_VALUES:,} values; use fewer aliases"
            )
        self._sizes[id(node)] = size


class _RefusedError(ConfigError):
    """What is wrong at a place of the text."""

    def __init__(self, place: Any, key: str, what: str) -> None:
        line = f"line {place.start_mark.line + 1}"
        reason, _, remedy = what.partition("; ")
        super().__init__(f"{key}: {reason} ({line}); {remedy}" if key else f"{line}: {what}")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _READ_BY_OTHERS_AS_TEXT]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT,
    re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0b[01]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] not in _NO_PLAIN_DATA
}


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            kind = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
            raise _RefusedError(key, kind, "is no plain key; keep one plain key for each value")
        _check_key(key, value)
        if key.value in seen:
            raise _RefusedError(key, key.value, "is there twice; keep one plain key for each value")
        seen.add(key.value)


def _merged(node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """A mapping's pairs: its own, then those that it merges; of one key the first counts."""
    pairs = {key.value: (key, value) for key, value in node.value if key.tag != _MERGE}
    for key, value in node.value:
        if key.tag == _MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for each in merged:
                if not isinstance(each, yaml.MappingNode):
                    raise _RefusedError(
                        each, "<<", "merges what is no mapping; name one by its alias"
                    )
                for pair in each.value:
                    pairs.setdefault(pair[0].value, pair)
    return list(pairs.values())


def _check_key(key: yaml.ScalarNode, value: yaml.Node) -> None:
    name = key.value
    alone = isinstance(value, yaml.ScalarNode) and value.tag == _NULL and value.value == ""
    if odd := odd_character(name):
        raise _RefusedError(key, ascii(name), f"has the character {odd} in it; type the key anew")
    if name != name.strip():
        raise _RefusedError(key, repr(name), "begins or ends with a space; remove it")
    if alone and re.fullmatch(r"[0-9_]+", name):
        raise _RefusedError(
            key,
            name,
            "stands behind a comma as a key of its own; write numbers such as 1000 and 1.5",
        )
    if key.tag not in (_STR, _MERGE):
        read_as = _READ_AS.get(key.tag, "a sign of YAML's own")
        raise _RefusedError(
            key, name or "null", f"is read as {read_as}, not as a key; put it in quotes"
        )
    before, colon, after = name.partition(":")
    if alone and key.style is None and colon:
        raise _RefusedError(
            key, name, f"is one word; put a space after the colon, as in '{before}: {after}'"
        )


def parse_yaml(text: str, source: str, words: Collection[str] = ()) -> Any:
    """The plain data of one YAML document; `source` names it in errors.

    `words` are keys of the document itself that YAML 1.1 would take for true or false.
    Numbers such as 5e-5 are floats. Raises ConfigError for what is no YAML or not one document, for
    duplicate keys and for keys that are no plain names.
    """
    try:
        return yaml.load(text, Loader=partial(_Loader, words=words))  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        char = character_name(text[error.position])
        raise ConfigError(
            f"{source}: has the character {char} in it (line {line}); remove it"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {_no_yaml(error)}") from None
    except ValueError:
        raise ConfigError(f"{source}: holds a number that cannot be read; correct it") from None


def _no_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f" at line {mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or "not a YAML document"
    if problem == "but found another document":
        return f"holds several YAML documents, the second{line}; keep one"
    remedy = "correct it"
    if "'\\t'" in problem:
        remedy = "indent with spaces, not with tabs"
    elif problem == "could not find expected ':'":
        remedy = "write `key: value`, with a space after the colon"
    return f"is no valid YAML{line} ({problem}); {remedy}"


def read_mapping(path: str | Path, words: Collection[str] = ()) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError where there is none. `words` as above."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: is not a text file in UTF-8; give a YAML file, saved as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    data = parse_yaml(text, str(path), words)
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{path}: is {found}, not a mapping; write lines of `key: value`")
    return data
