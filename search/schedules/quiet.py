"""Quiet hours: times of the day in which a schedule starts nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

DAY = 24 * 60
_SPAN = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)\s*-\s*([01]?\d|2[0-4]):([0-5]\d)")


def minutes_of(span: str) -> frozenset[int]:
    """The minutes of the day of a span such as 22:00-06:00, its end not counted. Raises ValueError.

    One that ends before it begins goes over midnight.
    """
    found = _SPAN.fullmatch(span.strip())
    if found is None:
        raise ValueError(f"{span!r} is no span of time; write such as 22:00-06:00")
    hour, minute, to_hour, to_minute = (int(each) for each in found.groups())
    begin, end = hour * 60 + minute, to_hour * 60 + to_minute
    if max(begin, end) > DAY or begin == DAY:
        raise ValueError(f"{span!r} is no span of time; a day ends at 24:00")
    if begin == end:
        raise ValueError(f"{span!r} begins where it ends; write such as 22:00-06:00")
    return frozenset(each % DAY for each in range(begin, end if end > begin else end + DAY))


def is_quiet(spans: Sequence[str], now: datetime) -> bool:
    """Whether one of the spans holds the time that the clock on the wall shows."""
    minute = now.hour * 60 + now.minute
    return any(minute in minutes_of(span) for span in spans)


def cover_the_day(spans: Sequence[str]) -> bool:
    """Whether no minute is left in which something could be started."""
    return len(frozenset().union(*(minutes_of(span) for span in spans))) == DAY
