"""What a schedule's sections `on` and `notify` become."""

from __future__ import annotations

from search.schedules.events import Nobody, Teller
from search.schedules.schedule import Schedule
from search.schedules.trigger import Trigger


def build(schedule: Schedule) -> list[Trigger]:
    """The triggers of a schedule; none where its sweep's own base is all that it looks at.

    Each knows by its own memory what of what it sees counts (`existing`).
    """
    del schedule
    return []


def teller_of(schedule: Schedule) -> Teller:
    """What tells the webhooks of a schedule."""
    del schedule
    return Nobody()
