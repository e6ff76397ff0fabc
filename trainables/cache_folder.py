"""Where on a node lies what can be fetched or computed again."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_VARIABLE = "RANKSWEEP_CACHE"


def cache_folder() -> Path:
    """RANKSWEEP_CACHE, else $XDG_CACHE_HOME/ranksweep, else ~/.cache/ranksweep."""
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    if named:
        return Path(named).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "ranksweep"
    try:
        return Path.home().absolute() / ".cache" / "ranksweep"
    except RuntimeError:
        # A process without a home has no cache either: nothing can be made in this place.
        return Path(os.devnull) / "ranksweep"
