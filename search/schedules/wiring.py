"""What a schedule becomes: triggers, who tells its webhooks, what it needs, what is emitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.config.yaml_file import read_mapping
from search.schedules.checks import ScheduleNeeds
from search.schedules.emitted.to_emit import ToEmit
from search.schedules.events import Nobody, Teller
from search.schedules.notify import Event, Kind, Notifier, address_of
from search.schedules.schedule import Schedule
from search.schedules.trigger import Trigger
from search.schedules.triggers.places import triggers_of
from trainables.cache_folder import cache_folder

_OF_AN_ENVIRONMENT = "env:"


def build(schedule: Schedule) -> list[Trigger]:
    """The triggers of a schedule; none where its sweep's own base is all that it looks at.

    Each knows by its own memory what of what it sees counts (`existing`).
    """
    return triggers_of(
        schedule.settings.on,
        folder=schedule.path.parent.absolute(),
        tracking_uri=schedule.config.tracking.uri,
        cache=cache_folder() / "bases",
        existing=schedule.settings.existing,
    )


def teller_of(schedule: Schedule) -> Teller:
    """What tells the webhooks of a schedule. Raises ConfigError where one's variable is not set."""
    receivers = schedule.settings.notify
    return _Webhooks(schedule.name, Notifier(receivers)) if receivers else Nobody()


def check_receivers(schedule: Schedule) -> None:
    """Raise ConfigError where the variable of a webhook is not set, or holds none."""
    for receiver in schedule.settings.notify:
        address_of(receiver)


class _Webhooks:
    def __init__(self, schedule: str, notifier: Notifier) -> None:
        self._schedule, self._notifier = schedule, notifier

    def tell(self, kind: Kind, text: str, facts: Mapping[str, Any]) -> None:
        self._notifier.tell(Event(kind, self._schedule, text, facts))

    def close(self) -> None:
        self._notifier.close()


def needs_of(schedule: Schedule) -> ScheduleNeeds:
    """What a schedule rests on, for the doctor."""
    settings = schedule.settings
    return ScheduleNeeds(
        name=schedule.name,
        store=schedule.config.store,
        tracking=schedule.config.tracking.uri,
        timezone=settings.when.timezone,
        submit=settings.submit,
        receivers=settings.notify,
    )


def to_emit(schedule: Schedule) -> ToEmit:
    """A schedule as others' schedulers need it."""
    settings = schedule.settings
    urls = [receiver.url for receiver in settings.notify]
    return ToEmit(
        name=schedule.name,
        file=schedule.path,
        sweep=schedule.sweep_file,
        raw=read_mapping(schedule.path, words=("on",)),
        crons=settings.when.cron,
        every=settings.when.pause,
        timezone=settings.when.timezone,
        submit=settings.submit,
        store=schedule.config.store,
        tracking=schedule.config.tracking.uri,
        variables=tuple(
            url.removeprefix(_OF_AN_ENVIRONMENT)
            for url in urls
            if url.startswith(_OF_AN_ENVIRONMENT)
        ),
    )
