"""A schedule for others' schedulers: Kubernetes, KubeRay, cron and systemd."""

from __future__ import annotations

from typing import Literal, get_args

from search.schedules.emitted.crontab import crontab
from search.schedules.emitted.kubernetes import cron_jobs, ray_job
from search.schedules.emitted.systemd import units
from search.schedules.emitted.to_emit import Host, Pod, ToEmit
from spaces.errors import UsageError

Form = Literal["cronjob", "crontab", "systemd", "rayjob"]
FORMS: tuple[Form, ...] = get_args(Form)


def emitted(
    schedule: ToEmit, to: Form, *, pod: Pod | None = None, host: Host | None = None
) -> dict[str, str]:
    """File name -> content of what another scheduler is to be given; nothing is written.

    `pod` is needed for `cronjob` and `rayjob`; `host` is this machine unless another is given.
    Raises UsageError where the schedule cannot be said in that form, or may not leave this machine.
    """
    if to in ("crontab", "systemd"):
        where = host or Host.this()
        if to == "systemd":
            return units(schedule, where)
        return {f"{schedule.name}.crontab": crontab(schedule, where)}
    if pod is None:
        raise UsageError(
            f"--image: a {to} runs in a container; name an image that has ranksweep in it"
        )
    made = ray_job(schedule, pod) if to == "rayjob" else cron_jobs(schedule, pod)
    return {f"{schedule.name}-{to}.yaml": made}


def as_text(files: dict[str, str]) -> str:
    """The files one after the other, each but a single one behind its name."""
    if len(files) == 1:
        return next(iter(files.values()))
    return "\n".join(f"# --- {name}\n{content}" for name, content in files.items())
