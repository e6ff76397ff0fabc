"""What a schedule would do, and why: nothing is started and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from search.redaction import redacted, redacted_text
from search.schedules.bounds import held_up
from search.schedules.identity import Fingerprints
from search.schedules.looks import Looks, wall_clock
from search.schedules.memory import Memory
from search.schedules.schedule import Schedule
from search.schedules.sight import Eyes, Seen
from search.schedules.trigger import Trigger
from search.store.claims import Claims
from search.store.keys import schedule_prefix
from search.store.objects import ObjectStorage
from search.store.unwritten import Unwritten

TIMES = 5


@dataclass(frozen=True)
class ModelSeen:
    """A model that would be looked at now: what would become of it, and what its claim says."""

    trigger: str
    model: str
    base: str
    what: str
    is_due: bool
    sweep: str | None
    state: str | None
    by: str | None
    since: str | None
    tries_left: int | None
    error: str | None

    @classmethod
    def of(cls, seen: Seen) -> ModelSeen:
        """For people and for JSON."""
        record = seen.record
        unfit = None if seen.due is None else seen.due.unfit
        return cls(
            trigger=seen.sighting.trigger,
            model=seen.sighting.subject,
            base=redacted_text(seen.sighting.base),
            what=seen.why if unfit is None else "cannot be swept",
            is_due=seen.due is not None,
            sweep=seen.sweep,
            state=None if record is None else record.state,
            by=None if record is None else record.by,
            since=None if record is None else record.since,
            tries_left=None if record is None else record.tries_left,
            error=unfit if record is None else record.error,
        )


@dataclass(frozen=True)
class Checked:
    """What a schedule would do now and next. `errors` are what it could not find out."""

    schedule: str
    sweep: str
    store: str
    tracking: str
    next_looks: tuple[str, ...]
    """Its next looks, in its own time zone."""
    held_up: str | None
    """Why nothing would be started now."""
    models: tuple[ModelSeen, ...]
    waiting: tuple[str, ...]
    """What is not whole yet."""
    errors: tuple[str, ...]


def check(
    schedule: Schedule,
    triggers: list[Trigger],
    *,
    fingerprints: Fingerprints | None = None,
    now: datetime | None = None,
) -> Checked:
    """What the next look would see and start. Raises StoreError where the store is away."""
    now = now or wall_clock()
    settings = schedule.settings
    objects = ObjectStorage(schedule.config.store)
    memory = Memory(Unwritten(objects).under(schedule_prefix(schedule.name)))
    claims = Claims(objects, settings.lease_seconds)
    sight = Eyes(memory, claims, fingerprints or Fingerprints()).look(schedule, triggers)
    looks = Looks(settings.when, now=lambda: now)
    return Checked(
        schedule=schedule.name,
        sweep=str(schedule.sweep_file),
        store=objects.name,
        tracking=redacted(schedule.config.tracking.uri),
        next_looks=tuple(
            each.isoformat(sep=" ", timespec="seconds") for each in looks.coming(TIMES)
        ),
        held_up=held_up(schedule, objects, now),
        models=tuple(ModelSeen.of(each) for each in sight.seen),
        waiting=sight.waiting,
        errors=sight.errors,
    )
