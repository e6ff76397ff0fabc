"""Ctrl-C while a launch runs: once ends it cleanly, twice at once, three times without a word.

A cluster's scheduler ends a job with SIGTERM, and a terminal that is closed with SIGHUP: both count
as Ctrl-C does. Some signal a process and then its whole group, as GNU timeout does: that is one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from search.watch import looking

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_S = 0.1
"""SIGTERM or SIGHUP again within this long is the same one."""


class Interrupts:
    """Hears the signals while it is open, in the main thread; elsewhere it hears nothing.

    The first raises KeyboardInterrupt, except while `deferred`; the second only asks those who
    wait for others to wait no longer (`hurried`), so that what is being written is written whole;
    the third ends the process on the spot.
    """

    def __init__(self) -> None:
        self._count = 0
        self._deferring = 0
        self._before: dict[int, Any] = {}
        self._heard_at: dict[int, float] = {}

    @property
    def heard(self) -> bool:
        """Whether there was one."""
        return self._count > 0

    @property
    def hurried(self) -> bool:
        """Whether there was a second."""
        return self._count > 1

    def __enter__(self) -> Self:
        self.listen()
        return self

    def listen(self) -> None:
        """Hear the signals, also when something has taken them over since, as Ray's start does."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:  # as SIGHUP is under nohup
                signal.signal(number, self._hear)
                self._before.setdefault(number, before)

    def __exit__(self, *exc_info: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While open, the first is only noted, for a loop that asks `heard` by itself."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1

    @contextmanager
    def followed_by(self, work: Callable[[], object]) -> Iterator[None]:
        """While open, `work` is done in a thread of its own as soon as one is heard."""

        def look() -> bool:
            # Not for an event that the handler sets: it may come while its own thread sets it.
            heard = self.heard
            if heard:
                work()
            return heard

        with looking(look, ONE_S, "after an interrupt"):
            yield

    def _hear(self, number: int, frame: FrameType | None) -> None:
        last, now = self._heard_at.get(number, -ONE_S), time.monotonic()
        self._heard_at[number] = now
        if number != signal.SIGINT and now - last < ONE_S:
            return
        self._count += 1
        if self._count == 1:
            _say("interrupted: what runs is being cancelled (Ctrl-C again leaves at once)")
            if not self._deferring:
                raise KeyboardInterrupt
        elif self._count == 2:
            _say("leaving at once")
        else:
            os._exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    # Not through a console or a logger: the signal may have come while it held its lock.
    with suppress(OSError):  # it may be closed
        os.write(2, f"{text}\n".encode())
