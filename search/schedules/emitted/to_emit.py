"""What another scheduler must know of a schedule to run it."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spaces.errors import UsageError


@dataclass(frozen=True)
class ToEmit:
    """A schedule as others' schedulers need it."""

    name: str
    file: Path
    """The schedule's file."""
    sweep: Path
    """The sweep's file."""
    raw: Mapping[str, Any]
    """The schedule as its file has it: plain data."""
    crons: tuple[str, ...] = ()
    every: float | None = None
    """Seconds from one look to the next; None where cron times alone say when."""
    timezone: str | None = None
    submit: str | None = None
    """Address that the sweeps are sent to; None where they run where the schedule does."""
    store: str = ""
    """URI of the store, where it is known."""
    tracking: str = ""
    variables: tuple[str, ...] = ()
    """Environment variables that the schedule names, such as those that hold webhooks."""
    files: tuple[Path, ...] = ()
    """More files that sweep and schedule are made of."""


@dataclass(frozen=True)
class Pod:
    """How a schedule runs on Kubernetes."""

    image: str
    namespace: str | None = None
    secret: str | None = None
    """Name of the Secret whose keys become environment variables; default: `<name>-secrets`."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Resources of a container, such as `{"nvidia.com/gpu": "1"}`."""
    workers: int = 0
    """Pods of a RayJob's cluster beside its head; with none the head computes."""
    claim: str | None = None
    """Name of a PersistentVolumeClaim for the models that are brought, shared by all pods."""


@dataclass(frozen=True)
class Host:
    """How a schedule runs on a machine."""

    command: tuple[str, ...]
    """What starts ranksweep."""
    folder: Path
    """The directory that it runs in: what it keeps, it keeps there."""
    environment: Path | None = None
    """A file of lines NAME=VALUE, readable by its owner alone."""

    @classmethod
    def this(cls, environment: Path | None = None) -> Host:
        """This machine, this Python and the current directory."""
        beside = Path(sys.executable).with_name("ranksweep")
        found = str(beside) if beside.is_file() else shutil.which("ranksweep")
        command = (found,) if found else (sys.executable, "-P", "-m", "ranksweep")
        return cls(command, Path.cwd(), None if environment is None else environment.absolute())

    def once(self, schedule: ToEmit) -> str:
        """The command line of one look, for a shell."""
        return shlex.join([*self.command, "schedule", "once", str(schedule.file.absolute())])


def minutes_of(every: float) -> str:
    """A pause in seconds as a cron time. Raises UsageError where cron has no word for it."""
    minutes = max(1, round(every / 60))
    if minutes < 60 and 60 % minutes == 0:
        return "* * * * *" if minutes == 1 else f"*/{minutes} * * * *"
    if minutes % 60 == 0 and minutes <= 1440 and 1440 % minutes == 0:
        hours = minutes // 60
        return {1: "0 * * * *", 24: "0 0 * * *"}.get(hours, f"0 */{hours} * * *")
    raise UsageError(
        f"when.every: {every:g} s is no part of an hour or a day, and cron cannot say it; name "
        "times in when.cron, or a pause such as 300 or 7200"
    )


def cron_lines(schedule: ToEmit) -> tuple[str, ...]:
    """When a schedule looks, as cron times; its pauses in whole minutes.

    Days of the week are 0 to 6, and a step stands behind a range: every cron reads them alike.
    """
    lines = [" ".join(_plain(field, place) for place, field in enumerate(line.split()))
             for line in schedule.crons]  # fmt: skip
    if schedule.every is not None:
        lines.append(minutes_of(schedule.every))
    return tuple(dict.fromkeys(lines))


_HIGHEST = (59, 23, 31, 12, 7)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_PART = re.compile(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?")
_WEEKDAY_PLACE = 4


def values_of(text: str, place: int) -> tuple[int, ...] | None:
    """The values of a field of a cron time, by its place from 0; None where any will do.

    Raises UsageError for what is no part of cron's own language.
    """
    lowest, highest = int(place in (2, 3)), _HIGHEST[place]
    found: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise _unknown(part)
        first, last, step = match.groups()
        if first == "*":
            low, high = lowest, 6 if place == _WEEKDAY_PLACE else highest
        else:
            low = _number(first, place)
            high = _number(last, place) if last else (highest if step else low)
        if high < low and place == _WEEKDAY_PLACE:
            high += 7
        found |= set(range(low, high + 1, int(step or 1)))
    if place == _WEEKDAY_PLACE:
        found = {value % 7 for value in found}
        highest = 6
    everything = set(range(lowest, highest + 1))
    return None if found == everything else tuple(sorted(found))


def _number(word: str, place: int) -> int:
    names = {3: _MONTHS, 4: WEEKDAYS}.get(place, ())
    if word in names:
        return names.index(word) + int(place == 3)
    if not word.isdecimal():
        raise _unknown(word)
    return int(word)


def _plain(text: str, place: int) -> str:
    """A field in the words that every cron knows."""
    simple = re.fullmatch(r"\*(/\d+)?|\d+(-\d+(/\d+)?)?(,\d+)*", text)
    values = values_of(text, place)
    if simple and place != _WEEKDAY_PLACE:
        return text
    return "*" if values is None else ",".join(map(str, values))


def _unknown(part: str) -> UsageError:
    return UsageError(
        f"when.cron: {part!r} is known to ranksweep's own clock alone; write numbers, or run "
        "`ranksweep schedule run` as a service (--to systemd)"
    )
