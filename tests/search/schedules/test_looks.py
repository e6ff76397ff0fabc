"""When a schedule looks: cron times, clocks that are set, daylight saving time, what was missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from search.schedules.cron import cron_triggers, next_times
from search.schedules.looks import Looks
from search.schedules.settings import WhenSettings

BERLIN = ZoneInfo("Europe/Berlin")


class Clocks:
    """The clock on the wall, which can be set, and one that only grows."""

    def __init__(self, now: datetime) -> None:
        self.now, self.seconds = now, 0.0

    def looks(self, when: WhenSettings, last: datetime | None = None) -> Looks:
        return Looks(when, last, now=lambda: self.now, monotonic=lambda: self.seconds)

    def pass_time(self, **spent: float) -> None:
        self.now += timedelta(**spent)
        self.seconds += timedelta(**spent).total_seconds()

    def count(self, looks: Looks, **span: float) -> int:
        """How many looks are made within a span, looked for every minute."""
        made = 0
        for _ in range(int(timedelta(**span).total_seconds() // 60)):
            self.pass_time(minutes=1)
            if looks.are_due():
                made += 1
                looks.made()
        return made


def at(*parts: int, zone: ZoneInfo | None = None) -> datetime:
    return datetime(*parts, tzinfo=zone or UTC)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("line", "days"),
    [
        ("0 3 * * 0", [6]),
        ("0 3 * * 7", [6]),
        ("0 3 * * sun", [6]),
        ("0 3 * * 1-5", [0, 1, 2, 3, 4]),
        ("0 3 * * 5-7", [4, 5, 6]),
        ("0 3 * * fri-mon", [0, 4, 5, 6]),
        ("0 3 * * */2", [1, 3, 5, 6]),
        ("0 3 * * 1,3", [0, 2]),
    ],
)
def test_days_of_the_week_are_those_of_cron(line: str, days: list[int]) -> None:
    times = next_times(cron_triggers(line, ZoneInfo("UTC")), at(2026, 11, 30), 14)
    assert sorted({each.weekday() for each in times}) == days


def test_either_day_will_do_where_both_are_named() -> None:
    times = next_times(cron_triggers("0 0 13 * 5", ZoneInfo("UTC")), at(2026, 11, 30), 4)
    assert [each.day for each in times] == [4, 11, 13, 18]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0 30 2 *", "never fires"),
        ("0 3 * *", "has 4 fields, not 5"),
        ("61 * * * *", "is no cron time"),
        ("0 3 * * 8", "is no day of the week"),
        ("@daily", "has 1 fields, not 5"),
    ],
)
def test_what_is_no_cron_time_is_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        cron_triggers(line, ZoneInfo("UTC"))


def test_it_looks_at_its_cron_times_and_at_no_other() -> None:
    clocks = Clocks(at(2026, 11, 30, 2, 30))
    looks = clocks.looks(WhenSettings(cron=("0 3 * * *",), timezone="UTC"))
    assert not looks.are_due()
    assert clocks.count(looks, days=3) == 3


def test_a_clock_that_is_set_back_an_hour_brings_no_second_look() -> None:
    clocks = Clocks(at(2026, 11, 30, 2, 30))
    looks = clocks.looks(WhenSettings(cron=("0 3 * * *",), timezone="UTC"))
    assert clocks.count(looks, minutes=45) == 1
    clocks.now -= timedelta(hours=1)
    assert clocks.count(looks, hours=2) == 0
    assert clocks.count(looks, hours=24) == 1


def test_a_clock_that_was_years_ahead_does_not_keep_it_from_looking() -> None:
    clocks = Clocks(at(2036, 11, 30, 2, 30))
    looks = clocks.looks(WhenSettings(cron=("0 3 * * *",), timezone="UTC"))
    assert not looks.are_due()
    clocks.now = at(2026, 11, 30, 2, 30)
    assert clocks.count(looks, hours=24) == 1


def test_a_clock_that_is_set_forward_over_a_time_brings_one_look() -> None:
    clocks = Clocks(at(2026, 11, 30, 2, 30))
    looks = clocks.looks(WhenSettings(cron=("*/10 3 * * *",), timezone="UTC"))
    assert not looks.are_due()
    clocks.now += timedelta(hours=3)
    assert clocks.count(looks, hours=12) == 1


@pytest.mark.parametrize(("line", "looks_made"), [("30 2 * * *", 1), ("0 12 * * *", 1)])
def test_an_hour_that_the_clock_leaves_out_loses_no_look(line: str, looks_made: int) -> None:
    clocks = Clocks(at(2026, 3, 29, 0, 0, zone=BERLIN).astimezone(UTC))
    looks = clocks.looks(WhenSettings(cron=(line,), timezone="Europe/Berlin"))
    assert clocks.count(looks, hours=23) == looks_made


def test_an_hour_that_the_clock_goes_twice_has_its_times_twice_and_no_more() -> None:
    clocks = Clocks(at(2026, 10, 25, 0, 0, zone=BERLIN).astimezone(UTC))
    looks = clocks.looks(WhenSettings(cron=("30 2 * * *",), timezone="Europe/Berlin"))
    assert clocks.count(looks, hours=25) == 2
    assert clocks.count(looks, hours=24) == 1


def test_every_so_many_seconds_goes_by_the_clock_that_only_grows() -> None:
    clocks = Clocks(at(2026, 11, 30))
    looks = clocks.looks(WhenSettings(every=600.0))
    assert looks.are_due()  # at once
    looks.made()
    clocks.now -= timedelta(hours=1)
    assert clocks.count(looks, hours=1) == 6
    clocks.now += timedelta(days=365)
    assert clocks.count(looks, hours=1) == 6


def test_a_time_that_was_missed_is_made_up_for_once_where_it_is_to_be() -> None:
    clocks = Clocks(at(2026, 11, 30, 12))
    when = WhenSettings(cron=("0 3 * * *",), timezone="UTC")
    assert clocks.looks(when, last=at(2026, 11, 26, 3)).are_due()
    assert not clocks.looks(when, last=at(2026, 11, 30, 3)).are_due()
    assert not clocks.looks(when).are_due()  # skip, or a schedule that is new
    assert not clocks.looks(when, last=at(2046, 11, 30)).are_due()


def test_a_look_that_failed_is_made_again_soon() -> None:
    clocks = Clocks(at(2026, 11, 30, 2, 59))
    looks = clocks.looks(WhenSettings(cron=("0 3 * * *",), timezone="UTC"))
    clocks.pass_time(minutes=1)
    assert looks.are_due()
    looks.failed()
    assert not looks.are_due()
    clocks.pass_time(minutes=1)
    assert looks.are_due()
    looks.made()
    assert clocks.count(looks, hours=10) == 0
