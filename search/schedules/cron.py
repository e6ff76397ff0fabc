"""Cron times: lines of a crontab, read as cron reads them, and when they come.

APScheduler's triggers say when; its scheduler is not used, for it sleeps until the next time and
does not see that the clock was set meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, available_timezones

from apscheduler.triggers.cron import CronTrigger
from tzlocal import get_localzone

from spaces.errors import nearest

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
"""As cron counts them; 7 is Sunday too. APScheduler counts from Monday."""
HORIZON = timedelta(days=9 * 366)
"""What does not come within it never comes: the rarest is 29 February, eight years apart."""
LEFT_OUT = timedelta(hours=2)
"""No clock leaves out more of a day."""
_FIELDS = 5
_PART = re.compile(r"(\*|[a-z]{3}|[0-7])(?:-([a-z]{3}|[0-7]))?(?:/([1-9]\d?))?")


def zone(name: str | None) -> tzinfo:
    """The time zone of this name, that of the machine for None. Raises ValueError."""
    if name is None:
        return get_localzone()
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(
            f"{name!r} is no time zone; {_meant(name, sorted(available_timezones()))}"
        ) from None


def _meant(name: str, known: Sequence[str]) -> str:
    told = nearest(name, known)
    return told if told.startswith("did") else "write one such as Europe/Berlin or UTC"


def cron_triggers(line: str, timezone: tzinfo) -> list[CronTrigger]:
    """What fires at the times of a line of a crontab: minute, hour, day, month, day of week.

    Where both day and day of week are restricted either will do, as in cron. Raises ValueError,
    also for a line that never fires.
    """
    fields = line.split()
    if len(fields) != _FIELDS:
        raise ValueError(
            f"{line!r} has {len(fields)} fields, not 5; write minute, hour, day of the month, "
            "month and day of the week, such as '0 3 * * *'"
        )
    minute, hour, day, month, weekday = (field.lower() for field in fields)
    days = [(day, _weekdays(weekday, line))]
    if not day.startswith("*") and not weekday.startswith("*"):
        days = [(day, "*"), ("*", days[0][1])]
    try:
        triggers = [
            CronTrigger(
                minute=minute, hour=hour, day=of_month, month=month, day_of_week=of_week,
                timezone=timezone,
            )
            for of_month, of_week in days
        ]  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{line!r} is no cron time ({_reason(error)}); correct it") from None
    now = datetime.now(UTC)
    firing = [each for each in triggers if _next(each, now) is not None]
    if not firing:
        raise ValueError(f"{line!r} never fires; there is no such day, write another")
    return firing


def next_times(triggers: Sequence[CronTrigger], after: datetime, count: int) -> list[datetime]:
    """The first `count` times after a moment; an hour that a clock goes twice has its times twice.

    What falls into an hour that the clock leaves out comes as much later.
    """
    found: list[datetime] = []
    # In UTC, for times of a zone are added and compared as a clock shows them. From before the hour
    # that a clock may leave out: asked within it, a trigger does not tell of it.
    since, last = after.astimezone(UTC), after.astimezone(UTC) - LEFT_OUT
    while len(found) < count:
        coming = [time for each in triggers if (time := _next(each, last)) is not None]
        if not coming:
            break
        first = min(coming, key=datetime.timestamp)
        last = first.astimezone(UTC)
        if last > since:
            found.append(first)
    return found


def _next(trigger: CronTrigger, after: datetime) -> datetime | None:
    """The first time of a trigger after a moment (UTC)."""
    later = after + timedelta(microseconds=1)
    time: datetime | None = trigger.get_next_fire_time(None, later.astimezone(trigger.timezone))
    return time if time is not None and time - later < HORIZON else None


def _reason(error: ValueError) -> str:
    return str(error).strip().rstrip(".")


def _weekdays(field: str, line: str) -> str:
    """The days of the week of cron's field as APScheduler has them, by name."""
    if field == "*":
        return field
    days: set[int] = set()
    for part in field.split(","):
        found = _PART.fullmatch(part)
        numbers = [] if found is None else [_weekday(name) for name in found.groups()[:2]]
        if found is None or None in numbers[:1]:
            raise ValueError(
                f"{line!r} is no cron time ({part!r} is no day of the week); write sun to sat, or "
                "0 to 7 with 0 and 7 for Sunday"
            )
        first, last, step = found.group(1), numbers[1], int(found.group(3) or 1)
        low = 0 if first == "*" else int(numbers[0] or 0)
        if last is None:
            last = 6 if first == "*" or found.group(3) else low
        elif last < low:
            last += 7  # such as fri-mon
        days |= {day % 7 for day in range(low, last + 1, step)}
    return ",".join(WEEKDAYS[day] for day in sorted(days, key=lambda day: (day - 1) % 7))


def _weekday(name: str | None) -> int | None:
    if name is None:
        return None
    if name == "*":
        return 0
    return WEEKDAYS.index(name) if name in WEEKDAYS else int(name) if name.isdigit() else None
