"""When a schedule looks: at cron times by the clock on the wall, every so often by one that only
grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from search.schedules.cron import cron_triggers, next_times, zone
from search.schedules.settings import WhenSettings

SET_BACK = timedelta(hours=2)
"""A clock that is set back by no more than this, as in autumn where it knows no zones, does not
bring the same times again."""
AGAIN_S = 30.0
"""Pause before a look that has failed is made again."""


def wall_clock() -> datetime:
    """Now, as the machine's clock says."""
    return datetime.now(UTC)


class Looks:
    """When the next look of a schedule is due.

    `last` is when a scheduler has last looked, where what was missed since is to be made up for.
    """

    def __init__(
        self,
        when: WhenSettings,
        last: datetime | None = None,
        *,
        now: Callable[[], datetime] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._monotonic = now, monotonic
        self._pause = when.pause
        self._zone = zone(when.timezone)
        self._cron = [each for line in when.cron for each in cron_triggers(line, self._zone)]
        started = now()
        self._checked = started if last is None or last > started else last
        """All cron times until then have been seen to."""
        self._at: float | None = None if self._pause is None else monotonic()
        """When a look is due by the clock that only grows."""

    def are_due(self) -> bool:
        """Whether to look now; a cron time that has come is seen to by this."""
        came = self._cron_came()
        if came:
            self._at = self._monotonic()
        return came or (self._at is not None and self._monotonic() >= self._at)

    def made(self) -> None:
        """A look was made."""
        self._at = None if self._pause is None else self._monotonic() + self._pause

    def failed(self) -> None:
        """A look could not be made: it is made again soon."""
        self._at = self._monotonic() + AGAIN_S

    def coming(self, count: int) -> list[datetime]:
        """The next times by the clock on the wall, in the schedule's zone."""
        after = self._now().astimezone(self._zone)
        times = next_times(self._cron, after, count)
        if self._pause is not None:
            times += [after + timedelta(seconds=self._pause * n) for n in range(count)]
        return sorted(times)[:count]

    def _cron_came(self) -> bool:
        if not self._cron:
            return False
        now = self._now()
        if now < self._checked:
            if self._checked - now > SET_BACK:
                self._checked = now
            return False
        times = next_times(self._cron, self._checked, 1)
        self._checked = now
        return bool(times) and times[0] <= now
