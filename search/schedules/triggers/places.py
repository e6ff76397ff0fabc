"""The triggers that the section `on` of a schedule asks for."""

from __future__ import annotations

from pathlib import Path

from search.schedules.trigger import Trigger
from search.schedules.triggers.checkpoints import Checkpoints
from search.schedules.triggers.hub import Hub
from search.schedules.triggers.registry import Registry
from search.schedules.triggers.settings import TriggerSettings


def triggers_of(
    settings: TriggerSettings, *, folder: Path, tracking_uri: str, cache: Path
) -> list[Trigger]:
    """One trigger for each place that is named, in the order of the section.

    `folder` is that of the schedule's file, which directories are relative to; `cache` a folder of
    this machine that models are brought to. Raises ConfigError for a place that cannot be opened.
    """
    return [
        *(Registry(each, tracking_uri=tracking_uri, cache=cache) for each in settings.registry),
        *(Checkpoints(each, folder=folder, cache=cache) for each in settings.checkpoints),
        *(Hub(each) for each in settings.hub),
    ]
