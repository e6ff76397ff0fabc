"""What a schedule remembers in the store, for whoever runs it next, on whatever machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from search.schedules.trigger import Sighting
from search.store.objects import ObjectStorage

_LOOKED = "looked.json"


@dataclass(frozen=True)
class Swept:
    """The claim that a schedule has made on a model."""

    key: str
    sweep: str


class Memory:
    """The objects of one schedule. All methods may raise StoreError."""

    def __init__(self, objects: ObjectStorage) -> None:
        self._objects = objects

    def of_trigger(self, name: str) -> ObjectStorage:
        """The objects that a trigger may use as it likes."""
        return self._objects.under(f"triggers/{_short(name)}")

    def swept(self, model: str) -> Swept | None:
        """The claim on a model, which is named by its fingerprint."""
        said = self._read(f"models/{model}.json")
        return None if said is None else Swept(said["key"], said["sweep"])

    def claims(self, model: str, swept: Swept, about: str) -> None:
        """Note the claim on a model, in place of one before."""
        document = {"key": swept.key, "sweep": swept.sweep, "model": about}
        self._objects.put(f"models/{model}.json", json.dumps(document, indent=2).encode())

    def is_over(self, sighting: Sighting) -> bool:
        """Whether the sweep of what was seen here is known to be settled."""
        return self._read(_sighted(sighting)) is not None

    def note_over(self, sighting: Sighting, swept: Swept) -> None:
        """Note that the sweep of a sighting is settled: its files need not be hashed again."""
        self._create(_sighted(sighting), {"base": sighting.base, "sweep": swept.sweep})

    def last_look(self) -> datetime | None:
        """When a scheduler has last looked, by the clock of its machine."""
        said = self._read(_LOOKED)
        try:
            return None if said is None else datetime.fromisoformat(said["at"])
        except (KeyError, TypeError, ValueError):
            return None

    def note_look(self, at: datetime) -> None:
        """Note that a look was made."""
        self._objects.put(_LOOKED, json.dumps({"at": at.isoformat()}).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        encoded = self._objects.get(name)
        try:
            said = None if encoded is None else json.loads(encoded)
        except ValueError:
            return None
        return said if isinstance(said, dict) else None

    def _create(self, name: str, document: dict[str, Any]) -> None:
        self._objects.create(name, json.dumps(document, indent=2).encode())


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _sighted(sighting: Sighting) -> str:
    return f"sightings/{_short(json.dumps([sighting.base, sighting.at]))}.json"
