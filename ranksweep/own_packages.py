"""Finds ranksweep's own packages, whatever else on the path is named as they are.

PYTHONPATH, the working directory of a notebook, and the one that `ray job submit` ships, come
before what is installed: a `search.py` there would stand in for ranksweep's own package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("search", "trainables", "spaces")


class OwnPackages(MetaPathFinder):
    """Finds the packages of the three floors beside this one, and nothing else."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What Python asks for every import; `path` is None at the top."""
        return PathFinder.find_spec(name, [str(ROOT)]) if path is None and name in FLOORS else None


def find_own_packages() -> None:
    """Have the three floors found here from now on.

    Raises ImportError where a module of such a name has been imported from elsewhere before.
    """
    for name in FLOORS:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and (origin is None or ROOT not in Path(origin).resolve().parents):
            raise ImportError(
                f"ranksweep: a module {name!r} is imported already, of {origin or 'elsewhere'}, "
                "and ranksweep has a package of that name; import ranksweep first, or rename yours"
            )
    if not any(isinstance(each, OwnPackages) for each in sys.meta_path):
        sys.meta_path.insert(0, OwnPackages())
