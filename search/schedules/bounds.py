"""Why a schedule starts nothing now: its quiet hours, and what is used of the day's budget."""

from __future__ import annotations

from datetime import datetime

from search.schedules.cron import zone
from search.schedules.quiet import is_quiet
from search.schedules.schedule import Schedule
from search.schedules.usage import hours_used
from search.store.objects import ObjectStorage


def held_up(schedule: Schedule, objects: ObjectStorage, now: datetime) -> str | None:
    """The reason in one line; None where sweeps may be started. Raises StoreError."""
    settings = schedule.settings
    if settings.quiet and is_quiet(settings.quiet, now.astimezone(zone(settings.when.timezone))):
        return f"quiet hours ({', '.join(settings.quiet)})"
    budget = settings.budget.gpu_hours_a_day
    if budget is not None and (used := hours_used(objects, now)) >= budget:
        return f"budget.gpu_hours_a_day: {used:.4g} of {budget:g} are used today (UTC)"
    return None
