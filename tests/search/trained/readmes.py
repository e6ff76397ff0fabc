"""The README of an exported folder, read as its user reads it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any


def run_by_readme(folder: Path) -> dict[str, Any]:
    """What the Python code of the folder's README leaves, run beside the folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.chdir(folder.parent):
        exec(code, names)
    return names
