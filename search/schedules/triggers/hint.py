"""What is said of a place where nothing is, once: its name may be misspelt."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)


class Hint:
    """Says of a place why it may be empty; again only when that is another reason.

    An empty place is not one that is waited for: whatever comes there later is new.
    """

    def __init__(self, place: str) -> None:
        self._place, self._given = place, ""

    def give(self, text: str) -> None:
        """Log a reason, unless it was the last one."""
        if text != self._given:
            self._given = text
            _log.warning("%s: %s", self._place, text)
