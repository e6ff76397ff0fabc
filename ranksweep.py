"""The command `ranksweep`, whatever else on the path is named as its packages are.

PYTHONPATH, and the working directory that `ray job submit` ships, come before what is installed: a
`search.py` there would stand in for ranksweep's own package before a line of it has run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = str(Path(__file__).resolve().parent)
FLOORS = ("search", "trainables", "spaces")


class OwnPackages(MetaPathFinder):
    """Finds ranksweep's packages beside this file, and nothing else."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What Python asks for every import; `path` is None at the top."""
        return PathFinder.find_spec(name, [ROOT]) if path is None and name in FLOORS else None


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.meta_path.insert(0, OwnPackages())
    from search.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
