"""Schedulers at work: as a service until it is stopped, or for one look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from search.interrupts import Interrupts
from search.schedules.run import Outcome
from search.schedules.scheduler import Say, Scheduler, Seams
from spaces.errors import ConfigError, StoreError

SLICE_S = 1.0
TICK_S = 15.0
"""Between two looks at what waits: for quiet hours to end, for a claim that another holds."""


class Service:
    """Runs schedules. Raises as `Scheduler`, and ConfigError where two have one name.

    With `again` what has failed for good is tried once more.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        say: Say,
        seams: Seams | None = None,
        *,
        again: bool = False,
    ) -> None:
        self._woken = threading.Event()
        self._say = say
        self.schedulers = [
            Scheduler(path, say, self._woken.set, seams or Seams(), again) for path in paths
        ]
        names = [each.schedule.name for each in self.schedulers]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(
                f"name: two of the schedules are called {double!r}; give each a name of its own"
            )

    @property
    def outcomes(self) -> list[Outcome]:
        """What has become of the sweeps that were run here, in the order in which they ended."""
        return [outcome for each in self.schedulers for outcome in each.outcomes]

    @property
    def errors(self) -> list[str]:
        """What could not be looked at by the last looks."""
        return [error for each in self.schedulers for error in each.errors]

    def run(self, interrupts: Interrupts) -> None:
        """Look and sweep until a signal is heard; then what runs is interrupted and waited for."""

        def tick() -> bool:
            for each in self.schedulers:
                each.tick()
            return True

        self._loop(interrupts, tick, self._tick_seconds())

    def once(self, interrupts: Interrupts) -> None:
        """Make one look, and run what is due to its end.

        What others hold is left to them, once they have shown that they live. Raises StoreError
        where the store is away.
        """
        for each in self.schedulers:
            if not each.look():
                raise StoreError(f"{each.schedule.name}: the store is away; nothing was looked at")

        def tick() -> bool:
            for each in self.schedulers:
                each.join(0.0)
                each.start()
            return any(each.runs or each.may_still_claim() for each in self.schedulers)

        self._loop(interrupts, tick, min(1.0, self._tick_seconds()))

    def _loop(self, interrupts: Interrupts, tick: Callable[[], bool], seconds: float) -> None:
        with interrupts.deferred(), interrupts.followed_by(self._stop):
            try:
                while not interrupts.heard and tick():
                    self._sleep(interrupts, seconds)
            finally:
                self._end(interrupts)

    def _end(self, interrupts: Interrupts) -> None:
        """Interrupt what still runs, wait for it, and for what is to be told of it."""
        self._stop()
        while not all(each.join(SLICE_S) for each in self.schedulers):
            if interrupts.hurried:
                self._stop(hurry=True)
        for each in self.schedulers:
            each.close()

    def _sleep(self, interrupts: Interrupts, seconds: float) -> None:
        waited = 0.0
        while waited < seconds and not interrupts.heard:
            if self._woken.wait(min(SLICE_S, seconds)):
                self._woken.clear()
                return
            waited += min(SLICE_S, seconds)

    def _stop(self, *, hurry: bool = False) -> None:
        for each in self.schedulers:
            each.stop(hurry=hurry)

    def _tick_seconds(self) -> float:
        leases = [each.schedule.settings.lease_seconds for each in self.schedulers]
        pauses = [each.schedule.settings.when.pause or TICK_S for each in self.schedulers]
        return max(0.2, min(TICK_S, *(each / 10 for each in leases), *(p / 4 for p in pauses)))
