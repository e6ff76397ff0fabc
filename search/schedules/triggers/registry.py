"""Models that are registered in MLflow: each new version, or what an alias points to."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from search.redaction import redacted
from search.schedules.trigger import Look, Sighting
from search.schedules.triggers.brought import BroughtModels
from search.schedules.triggers.hint import Hint
from search.schedules.triggers.memory import mapping, note, recalled
from search.schedules.triggers.registered_layout import hub_reference, laid_out, mlmodel_of
from search.schedules.triggers.settings import Existing, RegistrySettings
from search.schedules.triggers.whole_model import (
    ModelFolder,
    is_a_part,
    lacking,
    lacking_in_names,
)
from search.store.objects import ObjectStorage
from search.tracking.mlflow import absolute_uri, sqlite_file
from search.tracking.registry_models import READY, ModelVersion, RegisteredModels
from spaces.errors import RanksweepError, one_line


class _NotWholeError(RanksweepError):
    """A version's files, once they are here, are no whole model; the text says what they lack."""


class Registry:
    """A trigger: the versions of registered models that are whole.

    A version's files are brought to this machine as one folder that transformers reads. What
    ranksweep itself has registered, its champions, never counts: a schedule would sweep its own
    products for ever.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        tracking_uri: str,
        cache: Path,
        existing: Existing = "newest",
    ) -> None:
        self._settings, self._uri, self._existing = settings, tracking_uri, existing
        self._cache = BroughtModels(cache)
        alias = f"@{settings.alias}" if settings.alias is not None else ""
        self.name = f"registry {settings.model}{alias}"
        self._hint = Hint(self.name)

    def look(self, memory: ObjectStorage) -> Look:
        """The versions that are whole, and what the others wait for.

        A version that cannot be brought here, as without the right to read it or the room for it,
        keeps none of the others from being seen. Raises TrackingError where the registry cannot be
        reached.
        """
        database = sqlite_file(absolute_uri(self._uri))
        if database is not None and not os.path.exists(database):  # of os.path: it never raises
            self._hint.give(f"there is no database {database} yet")
            return Look()
        registered = RegisteredModels(self._uri)
        every = registered.versions(self._settings.model, self._settings.alias)
        versions = [each for each in every if not each.ours]
        before = recalled(memory)
        if "passed" in before:
            passed = mapping(before, "passed")
        else:
            passed = _passed(self._settings.alias, self._existing, versions)
        broken, broken_now = mapping(before, "broken"), {}
        found: list[Sighting] = []
        waiting: list[str] = []
        for each in versions:
            if not self._counts(each, passed):
                continue
            label, key = f"{each.name} version {each.version}", f"{each.name}/{each.version}"
            try:
                base = self._base(registered, each, broken.get(key))
            except _BrokenError as error:
                waiting.append(f"{label}: {error}")
                broken_now[key] = {"signature": error.signature, "reason": str(error)}
                continue
            except (RanksweepError, OSError) as error:
                waiting.append(f"{label}: {one_line(error)}")
                if key in broken:
                    broken_now[key] = broken[key]
                continue
            found.append(Sighting(self.name, label, base, _at(each), family=each.name))
        if not versions:
            self._hint.give(_absence(self._settings, bool(every)))
        note(memory, before, {"passed": passed, "broken": broken_now})
        return Look(tuple(sorted(found, key=lambda each: each.at)), tuple(waiting))

    def _counts(self, version: ModelVersion, passed: dict[str, Any]) -> bool:
        """Whether a version is none of those that were there before the schedule."""
        last: int = passed.get(version.name, 0)
        if self._settings.alias is None:
            return version.version > last
        if version.version != last:
            passed.pop(version.name, None)  # should the alias come back to it, that is news
            return True
        return False

    def _base(self, registered: RegisteredModels, version: ModelVersion, before: Any) -> str:
        """The base that a version is, brought here. Raises _BrokenError where it is none yet."""
        if version.status != READY:
            raise _BrokenError(f"MLflow says that it is {version.status}, not {READY}", "")
        place = _place(self._uri, version)
        held = self._cache.held(place)
        if held is not None:
            return f"path:{held}"
        sizes = registered.files(version)
        signature = hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()
        if isinstance(before, dict) and before.get("signature") == signature:
            raise _BrokenError(str(before.get("reason")), signature)
        layout = laid_out(sizes)
        if not layout and (base := self._reference(registered, version, sizes)):
            return base
        if not sizes:
            raise _BrokenError(
                "has no files where it was registered from, as seen from here", signature
            )
        if not layout:
            raise _BrokenError("is no model of transformers", signature)
        if reason := lacking_in_names(layout):
            raise _BrokenError(reason, signature)
        wanted = {name: whole for name, whole in layout.items() if is_a_part(name)}

        def fetch(folder: Path) -> None:
            with tempfile.TemporaryDirectory(prefix=".fetched-", dir=folder.parent) as fetched:
                for name, whole in wanted.items():
                    file = folder / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    registered.fetch(version, whole, Path(fetched)).rename(file)
            if reason := lacking(ModelFolder.of(folder)):
                raise _NotWholeError(reason)

        try:
            name = f"{version.name}-v{version.version}"
            return f"path:{self._cache.bring(place, name, fetch)}"
        except _NotWholeError as error:
            raise _BrokenError(str(error), signature) from None

    def _reference(
        self, registered: RegisteredModels, version: ModelVersion, names: Collection[str]
    ) -> str | None:
        mlmodel = mlmodel_of(names)
        if mlmodel is None:
            return None
        with tempfile.TemporaryDirectory(prefix="ranksweep-") as folder:
            return hub_reference(registered.fetch(version, mlmodel, Path(folder)).read_bytes())


class _BrokenError(Exception):
    """A version is no whole model as its files are now, which `signature` names; says why."""

    def __init__(self, reason: str, signature: str) -> None:
        super().__init__(reason)
        self.signature = signature


def _place(uri: str, version: ModelVersion) -> str:
    # The time too: a model of the same name may be removed and registered anew.
    parts = (redacted(uri), version.name, version.version, version.created_ms, version.source)
    return json.dumps(parts)


def _at(version: ModelVersion) -> str:
    created = datetime.fromtimestamp(version.created_ms / 1000, UTC)
    return f"{created.isoformat(timespec='milliseconds')} {version.name} {version.version:06d}"


def _passed(
    alias: str | None, existing: Existing, versions: Collection[ModelVersion]
) -> dict[str, int]:
    """Model -> the last of its versions that does not count, decided at the first look."""
    numbers: dict[str, list[int]] = {}
    for each in versions:
        if each.status == READY:
            numbers.setdefault(each.name, []).append(each.version)
    if existing == "skip":
        return {name: max(there) for name, there in numbers.items()}
    if existing == "newest" and alias is None:
        return {name: max(there) - 1 for name, there in numbers.items()}
    return {}


def _absence(settings: RegistrySettings, ours: bool) -> str:
    if ours:
        return "only what ranksweep has registered is there"
    if settings.alias is not None:
        return f"no such model, or none with the alias {settings.alias}, is registered yet"
    return "no such model is registered yet"
