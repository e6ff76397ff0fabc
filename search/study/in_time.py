"""What a tracking server says in time: a sweep begins without what it is too late for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from spaces.errors import RanksweepError

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
Found = TypeVar("Found")


def in_time(find: Callable[[], list[Found]], without: str) -> list[Found]:
    """What `find` returns within `PATIENCE_S`; else nothing, and a warning `without`: why."""
    found: list[Found] = []
    why: list[str] = []

    def look() -> None:
        try:
            found.extend(find())
        except RanksweepError as error:
            why.append(str(error))

    thread = threading.Thread(target=look, name="earlier sweeps", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if thread.is_alive():
        why.append(f"the tracking server has not answered within {PATIENCE_S:.0f} s")
    if why:
        logger.warning("%s: %s", without, why[0])
        return []
    return found
