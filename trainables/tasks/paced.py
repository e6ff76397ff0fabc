"""What is said now and then of long work."""

from __future__ import annotations

import logging
import time

EVERY_S = 30.0

_log = logging.getLogger(__name__)


class Paced:
    """Says how far a work is, once in `EVERY_S` seconds: `template` has a place for a number."""

    def __init__(self, template: str) -> None:
        self._template, self._next = template, time.monotonic() + EVERY_S

    def __call__(self, number: int) -> None:
        """Hear how far it is."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_S
            _log.warning("%s", self._template.format(number))
