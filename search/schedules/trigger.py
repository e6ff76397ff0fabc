"""What a schedule looks at for new models: the protocol of its triggers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from search.store.objects import ObjectStorage


@dataclass(frozen=True)
class Sighting:
    """A model that a trigger sees, whole and as it has been for two looks.

    `base` is its URI as a sweep file has it. `at` sorts the sightings of one trigger by age; the
    newest is the largest.
    """

    trigger: str
    """Such as `registry encoder` or `checkpoints s3://bucket/runs`."""
    subject: str
    """What people call it, such as `encoder version 3` or `step-2000`."""
    base: str
    at: str
    family: str = ""
    """What the models of its place are versions of, for the champion that they compete for: such as
    the name of a registered model. Empty where the base's own name says so."""


@dataclass(frozen=True)
class Look:
    """What one look of a trigger has seen; `waiting` says in one line each what is not whole."""

    found: tuple[Sighting, ...] = ()
    waiting: tuple[str, ...] = ()


class Trigger(Protocol):
    """One place that new models come to."""

    name: str

    def look(self, memory: ObjectStorage) -> Look:
        """What is there now.

        `memory` are the objects of this trigger alone in the store, for what a look must know of
        the one before it. Raises RanksweepError, in one line, where the place cannot be reached.
        """
