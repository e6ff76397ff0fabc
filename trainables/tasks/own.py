"""A metric or a kind of task of the user's own, named by import path: `my_module:my_metric`.

The module is looked for in the working directory, then among what is installed. Its code goes with
the task to the workers, wherever they run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

from spaces.errors import ConfigError, nearest, one_line

_FLOORS = ("search", "trainables", "spaces")
_loaded: list[ModuleType] = []


def is_own(name: str) -> bool:
    """Whether a name is an import path."""
    return ":" in name


def own_modules() -> tuple[ModuleType, ...]:
    """The modules that were found so far."""
    return tuple(_loaded)


@cache
def own_object(path: str, key: str) -> Any:
    """What an import path names; `key` is the setting that does.

    Raises ConfigError where there is no such module, it cannot be imported, or has no such name.
    """
    name, _, attribute = path.partition(":")
    if not name or not attribute.isidentifier():
        raise ConfigError(f"{key}: {path!r} is no import path; write my_module:my_name")
    module = _module(name, key)
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise ConfigError(f"{key}: {name} has no {attribute!r}; {nearest(attribute, public)}")
    return getattr(module, attribute)


def _module(name: str, key: str) -> ModuleType:
    if name.partition(".")[0] in _FLOORS:
        raise ConfigError(f"{key}: {name!r} is a package of ranksweep; rename your module")
    if (there := sys.modules.get(name)) is not None:
        return there
    folders = [os.getcwd(), *sys.path]
    spec = None
    for part in name.split("."):  # a module in a package, without importing the package
        spec = PathFinder.find_spec(part, folders)
        if spec is None:
            break
        folders = list(spec.submodule_search_locations or ())
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{key}: there is no module {name!r} in {os.getcwd()} or among what is installed; "
            f"run this where {name.replace('.', '/')}.py lies"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a module raises
        del sys.modules[name]
        raise ConfigError(
            f"{key}: {name} cannot be imported ({type(error).__name__}: {one_line(error)}); "
            "correct it"
        ) from error
    _loaded.append(module)
    return module
