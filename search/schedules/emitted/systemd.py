"""A schedule as units of systemd: a service that runs on, or a timer that looks once."""

from __future__ import annotations

import re

from search.schedules.emitted.to_emit import WEEKDAYS, Host, ToEmit, values_of

STOP_S = 300
"""Seconds that a sweep has to end at a stop: its trials are closed and MLflow is told."""


def units(schedule: ToEmit, host: Host) -> dict[str, str]:
    """File name -> unit. The service runs on by itself; the timer starts the other service, once
    for each look. One of the two is to be enabled."""
    name = f"ranksweep-{schedule.name}"
    about = f"ranksweep: the schedule {schedule.name}"
    service = f"""\
[Unit]
Description={_literal(about)}
Wants=network-online.target
After=network-online.target

[Service]
{_service(schedule, host, "run")}
Restart=on-failure
RestartSec=30

[Install]
WantedBy=multi-user.target
"""
    once = f"""\
[Unit]
Description={_literal(about)}, one look
Wants=network-online.target
After=network-online.target

[Service]
{_service(schedule, host, "once")}
"""
    times = "\n".join(f"OnCalendar={each}" for each in calendar_events(schedule))
    if schedule.every is not None:
        pause = f"{schedule.every:g}s"
        times = "\n".join(filter(None, [times, f"OnActiveSec={pause}\nOnUnitInactiveSec={pause}"]))
    timer = f"""\
[Unit]
Description={_literal(about)}, its times

[Timer]
{times}
Persistent=true
Unit={name}-once.service

[Install]
WantedBy=timers.target
"""
    return {f"{name}.service": service, f"{name}-once.service": once, f"{name}-once.timer": timer}


def calendar_events(schedule: ToEmit) -> list[str]:
    """The cron times of a schedule as systemd has them.

    Where a line restricts both the day of the month and that of the week either will do, so that it
    becomes two.
    """
    zone = f" {schedule.timezone}" if schedule.timezone is not None else ""
    events: list[str] = []
    for line in schedule.crons:
        minute, hour, day, month, weekday = (
            values_of(field, place) for place, field in enumerate(line.split())
        )
        starred = any(field.startswith("*") for field in line.split()[2::2])
        either = day is not None and weekday is not None and not starred
        for of_month, of_week in [(day, None), (None, weekday)] if either else [(day, weekday)]:
            days = "" if of_week is None else ",".join(WEEKDAYS[i].title() for i in of_week) + " "
            date = f"*-{_listed(month)}-{_listed(of_month)}"
            events.append(f"{days}{date} {_listed(hour)}:{_listed(minute)}:00{zone}")
    return events


def _listed(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02d}" for value in values)


def _service(schedule: ToEmit, host: Host, command: str) -> str:
    arguments = [*host.command, "schedule", command, str(schedule.file.absolute())]
    lines = [
        f"Type={'oneshot' if command == 'once' else 'simple'}",
        f"WorkingDirectory={_literal(str(host.folder))}",
        f"ExecStart={' '.join(_argument(each, i > 0) for i, each in enumerate(arguments))}",
        # The process itself ends its sweep, and Ray's processes with it.
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        "SuccessExitStatus=130",
        "UMask=0077",
    ]
    if host.environment is not None:
        lines.insert(2, f"EnvironmentFile={_literal(str(host.environment))}")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A value in which systemd fills nothing in."""
    return text.replace("%", "%%")


def _argument(text: str, behind_program: bool) -> str:
    """A part of a command line, in which systemd fills nothing in: it knows variables only in what
    stands `behind_program`."""
    literal = _literal(text)
    if behind_program:
        literal = literal.replace("$", "$$")
    if re.fullmatch(r"[\w./:@%$+=,-]+", literal):
        return literal
    escaped = literal.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
