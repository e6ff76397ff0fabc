"""A metric or a kind of task of the user's own, named by import path: `my_module:my_metric`.

The module is looked for in the working directory, then among what is installed. It is one file,
whose code goes with the task to the workers, wherever they run; what is installed they have
themselves.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from spaces.errors import ConfigError, UsageError, nearest, one_line, shown

_FLOORS = ("search", "trainables", "spaces")
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_loaded: list[ModuleType] = []


def is_own(name: str) -> bool:
    """Whether a name is an import path."""
    return ":" in name


def refuse_own_code(names: Iterable[object], source: str) -> None:
    """Raise UsageError where one of the names that `source` has is an import path: what a run says
    decides what is imported only where the user wants it."""
    for name in names:
        if isinstance(name, str) and is_own(name):
            raise UsageError(
                f"{source}: its task names code of its author's own, {shown(repr(name))}, which "
                "would be run here; look at it, and give --own-code where you trust it"
            )


def own_modules() -> tuple[ModuleType, ...]:
    """The modules that were found so far, but for those that are installed."""
    return tuple(_loaded)


def own_code(**names: str) -> dict[str, str]:
    """`<key>_code` -> the SHA-256 of the file that an import path's code stands in, of each of the
    names that is one: a part of fingerprints.

    Raises ConfigError where it stands in no file, or in one that cannot be read.
    """
    return {
        f"{key}_code": _digest(name, f"task.{key}") for key, name in names.items() if is_own(name)
    }


def _digest(path: str, key: str) -> str:
    own_object(path, key)
    name = path.partition(":")[0]
    try:
        file = Path(sys.modules[name].__file__ or "")
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except (AttributeError, OSError) as error:
        raise ConfigError(
            f"{key}: the code of {name} is in no file that can be read; put it into one of its own"
        ) from error


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
    module = sys.modules.get(name) or _imported(name, key)
    if module not in _loaded and not _is_installed(module):
        _loaded.append(module)
    return module


def _is_installed(module: ModuleType) -> bool:
    """Whether a module comes with Python or with a package that is installed."""
    stdlib = sysconfig.get_path("stdlib")
    file = Path(getattr(module, "__file__", None) or stdlib)
    return file.is_relative_to(stdlib) or not _PACKAGES.isdisjoint(file.parts)


def _imported(name: str, key: str) -> ModuleType:
    folders = [os.getcwd(), *sys.path]
    spec = None
    for whole in accumulate(name.split("."), "{}.{}".format):  # without importing its packages
        spec = PathFinder.find_spec(whole, folders)
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
            f"{key}: {name} cannot be imported ({one_line(error)}); correct it"
        ) from error
    return module
