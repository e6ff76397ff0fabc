"""YAML files read strictly: safe, and no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from spaces.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-5 is a number, and a key written twice is an error."""


# PyYAML follows YAML 1.1, where a float needs a dot; every other tool a user has reads 5e-5.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if isinstance(key, list | dict) or key in seen:
            what = "is no plain key" if isinstance(key, list | dict) else "is there twice"
            line = key_node.start_mark.line + 1
            raise ConfigError(f"{key}: {what} (line {line}); keep one plain key for each value")
        seen.add(key)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def parse_yaml(text: str, source: str) -> Any:
    """The plain data of one YAML document; `source` names it in errors.

    Numbers such as 5e-5 are floats. Raises ConfigError for broken YAML and for duplicate keys.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not a YAML document"
        raise ConfigError(f"{source}: is no valid YAML{line} ({problem}); correct it") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ConfigError where there is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        found = "empty" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{path}: is {found}, not a mapping; write lines of `key: value`")
    return data
