"""The triggers that the section `on` of a schedule asks for."""

from __future__ import annotations

import time
from pathlib import Path

from search.schedules.trigger import Trigger
from search.schedules.triggers.checkpoints import Checkpoints
from search.schedules.triggers.hub import Hub
from search.schedules.triggers.registry import Registry
from search.schedules.triggers.settings import Existing, TriggerSettings


def triggers_of(
    settings: TriggerSettings,
    *,
    folder: Path,
    tracking_uri: str,
    cache: Path,
    existing: Existing = "newest",
) -> list[Trigger]:
    """One trigger for each place that is named, in the order of the section.

    `folder` is that of the schedule's file, which directories are relative to; `cache` a folder of
    this machine that models are brought to. What `existing` leaves out of the models that are there
    at the first look is neither brought nor seen: of a model of the registry and of a place of
    checkpoints that is all but the newest, or all. An alias and a revision count by what they
    point to: only `skip` leaves that out, until they point to another. Raises ConfigError for a
    place that cannot be opened.
    """
    return [
        *(
            Registry(each, tracking_uri=tracking_uri, cache=cache, existing=existing)
            for each in settings.registry
        ),
        *(
            Checkpoints(each, folder=folder, cache=cache, existing=existing, wait=time.sleep)
            for each in settings.checkpoints
        ),
        *(Hub(each, existing=existing) for each in settings.hub),
    ]
