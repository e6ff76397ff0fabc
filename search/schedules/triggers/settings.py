"""The section `on` of a schedule: where new models come from."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from search.paths import STORE_SCHEMES
from search.redaction import redacted
from trainables.settings import Name, Settings

Existing = Literal["newest", "all", "skip"]
"""Which of the models that are there when a schedule looks for the first time count as new."""
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def _known_place(place: str) -> str:
    scheme, separator, rest = place.partition("://")
    if not place.strip() or (separator and (scheme not in STORE_SCHEMES or not rest.strip("/"))):
        raise ValueError(f"{redacted(place)!r} is no place; use a directory, s3://, gs:// or az://")
    return place


def _known_repo(repo: str) -> str:
    name, _, revision = repo.removeprefix("hub:").partition("@")
    if revision and _REPO.fullmatch(name):
        raise ValueError(f"names a revision; write `repo: {name}` and `revision: {revision}`")
    if not _REPO.fullmatch(repo):
        meant = f"did you mean '{name}'?" if _REPO.fullmatch(name) else "write org/name"
        raise ValueError(f"{repo[:80]!r} is no repository of the hub; {meant}")
    return repo


class RegistrySettings(Settings):
    """Models that are registered in MLflow: each new version, or what an alias points to."""

    model: Name
    """Name of a registered model, or a pattern such as `encoder-*`."""
    alias: Name | None = None
    """Such as `candidate`: only the version that it points to counts, whenever that is another one.
    `null` takes every version."""


class CheckpointsSettings(Settings):
    """Folders that a trainer writes, each a whole model once it is complete."""

    under: Annotated[str, AfterValidator(_known_place)]
    """A directory, relative to the schedule's file, or `s3://`, `gs://`, `az://` with bucket and
    prefix. Every folder below it is looked at."""


class HubSettings(Settings):
    """A model of the Hugging Face hub: each new commit of a revision."""

    repo: Annotated[str, AfterValidator(_known_repo)]
    """Such as `org/name`."""
    revision: Annotated[str, Field(min_length=1)] = "main"
    """Branch or tag that is followed."""


class TriggerSettings(Settings):
    """What starts a sweep beside the clock. Each place is looked at as often as the schedule
    says."""

    registry: tuple[RegistrySettings, ...] = ()
    """Registered models of the MLflow that the sweep is tracked to. Those that ranksweep itself has
    registered never count."""
    checkpoints: tuple[CheckpointsSettings, ...] = ()
    """Places where trainers leave checkpoints."""
    hub: tuple[HubSettings, ...] = ()
    """Models of the Hugging Face hub."""
    data: bool = False
    """Whether a change of the task's data is worth a sweep: the newest model of each place is swept
    again, or the sweep's own base where no place is named."""

    @model_validator(mode="after")
    def _each_once(self) -> TriggerSettings:
        named: dict[str, tuple[object, ...]] = {
            "registry": tuple((each.model, each.alias) for each in self.registry),
            "checkpoints": tuple(each.under.rstrip("/") for each in self.checkpoints),
            "hub": tuple((each.repo, each.revision) for each in self.hub),
        }
        for key, places in named.items():
            if len(set(places)) < len(places):
                raise ValueError(f"{key} names the same place twice; leave one out")
        return self
