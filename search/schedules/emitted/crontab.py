"""A schedule as lines of a crontab."""

from __future__ import annotations

import shlex

from search.schedules.emitted.to_emit import Host, ToEmit, cron_lines


def crontab(schedule: ToEmit, host: Host) -> str:
    """Lines that look once at each of a schedule's times; what it says goes to the system's log."""
    steps = [f"cd {shlex.quote(str(host.folder))}"]
    if host.environment is not None:
        steps.append(f"set -a && . {shlex.quote(str(host.environment))} && set +a")
    tag = shlex.quote(f"ranksweep-{schedule.name}")
    steps.append(f"{host.once(schedule)} 2>&1 | logger -t {tag}")
    command = " && ".join(steps).replace("%", "\\%")  # cron takes % for the end of the line
    lines = [f"# ranksweep: the schedule {schedule.name}"]
    if schedule.timezone is not None:
        lines += [
            "# A cron that does not know CRON_TZ takes the times for those of the machine's zone.",
            f"CRON_TZ={schedule.timezone}",
        ]
    lines += [f"{times} {command}" for times in cron_lines(schedule)]
    return "\n".join(lines) + "\n"
