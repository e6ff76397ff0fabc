"""Tells a listener what stands in a sweep's journal, as the relay tells MLflow.

Each listener has a thread of its own, so that none waits for another and training for none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from search.redaction import redacted_text
from search.tracking.also.listener import Listener, ToldRun
from search.tracking.journal import Journal, Record
from search.tracking.relay import points_of

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Between two looks at the journal."""


class Feed:
    """Tells a listener of every run in the journal that it has not been told to its end.

    The first fault of the listener ends it: that is said in one line, and the rest stays in the
    journal, for the next launch of the sweep.

    Args:
        journal: what is to be told.
        name: the listener's, as `tracking.also` has it.
        make: makes the listener; called in the thread.
        say: shows a line to the user; called from the thread.
        pause_s: between two looks at the journal.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        make: Callable[[], Listener],
        say: Callable[[str], object] = logger.info,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._journal, self._name, self._make, self._say = journal, name, make, say
        self._pause_s = pause_s
        self._last = 0
        self._runs: dict[int, ToldRun] = {}
        self._stop, self._given_up = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"also-{name}", daemon=True)
        self._thread.start()

    def close(self, patience_s: float = 30.0, hurried: Callable[[], bool] = lambda: False) -> None:
        """Tell what is left, for at most so long, and no longer once it is `hurried`."""
        self._stop.set()
        give_up = time.monotonic() + patience_s
        while self._thread.is_alive() and not hurried() and time.monotonic() < give_up:
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._given_up = True
            self._say_that_it_ends("it takes too long")

    def _run(self) -> None:
        try:
            listener, is_last = self._make(), False
            while not is_last:
                is_last = self._stop.wait(self._pause_s)
                self._tell(listener)
            listener.close()
        except Exception as error:  # a listener is to disturb nothing, whatever befalls it
            logger.debug("%s raised", self._name, exc_info=True)
            if not self._given_up:
                reason = " ".join(redacted_text(str(error)).split())[:300]
                self._say_that_it_ends(reason or type(error).__name__)

    def _tell(self, listener: Listener) -> None:
        while records := self._journal.heard(self._name, self._last):
            for record in records:
                if self._given_up:
                    return
                self._tell_of(listener, record)
                self._last = record.id

    def _tell_of(self, listener: Listener, record: Record) -> None:
        key = record.number
        if record.kind == "start":
            self._runs[key] = ToldRun.of(record)
            listener.start(self._runs[key], record.at_ms)
        elif key not in self._runs:  # an older ranksweep has kept no record of its start
            return
        listener.log(self._runs[key], points_of(record))
        if record.kind == "end":
            listener.end(self._runs.pop(key), record.body["state"], record.body["error"])
            self._journal.heard_all(self._name, key)

    def _say_that_it_ends(self, reason: str) -> None:
        self._say(
            f"tracking.also: {self._name} is told nothing more ({reason}); the sweep goes "
            "on, and launch --resume tells it the rest"
        )
