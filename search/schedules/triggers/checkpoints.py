"""Checkpoints that a trainer leaves in a directory or in object storage, once they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from search.redaction import redacted
from search.schedules.trigger import Look, Sighting
from search.schedules.triggers.brought import BroughtModels
from search.schedules.triggers.hint import Hint
from search.schedules.triggers.memory import mapping, note, recalled
from search.schedules.triggers.settings import CheckpointsSettings, Existing
from search.schedules.triggers.whole_model import (
    ModelFolder,
    is_a_part,
    lacking,
    lacking_in_names,
    looks_like_a_model,
)
from search.store.foreign_files import ForeignFile, ForeignFiles, is_gone
from search.store.objects import ObjectStorage
from spaces.errors import RanksweepError, StoreError, one_line

APART_S = 2.0
"""Seconds between two looks that count as two: of two schedulers that look at once neither sees
whether a file still grows."""
_AGAIN = "is looked at again, to see whether it still changes"

_STILL_WRITTEN = ("tmp-", ".tmp", "tmp_")
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class _Candidate:
    """A folder that looks like a model, with the files in it that a base is made of."""

    name: str
    names: tuple[str, ...]
    """Of all the files in it, for what it holds beside a base."""
    parts: Mapping[str, ForeignFile]

    @property
    def changed(self) -> datetime:
        return max((file.changed for file in self.parts.values()), default=_NEVER)

    @property
    def at(self) -> str:
        return f"{self.changed.isoformat(timespec='microseconds')} {self.name}"

    @property
    def signature(self) -> str:
        """Another one where a name, a size or a tag of its parts is another."""
        listed = [(name, file.size, file.tag) for name, file in sorted(self.parts.items())]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


class _ChangedError(StoreError):
    """A checkpoint is no more what it was when it was looked at."""


class Checkpoints:
    """A trigger: every folder under a place that is a whole model.

    A folder counts when its config and the index of its weights are whole, the files of weights are
    there and as long as their headers say, a tokenizer lies beside them, and no name, size or tag
    has changed between two looks. What is remote is brought to this machine; what is in a directory
    stays there. `existing` says which of those that have all their files at the first look count.
    `now` is this machine's clock, in seconds of Unix time. With `wait` what is new is listed again
    so many seconds later, within the same look.
    """

    def __init__(
        self,
        settings: CheckpointsSettings,
        *,
        folder: Path,
        cache: Path,
        existing: Existing = "newest",
        now: Callable[[], float] = time.time,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._wait = wait
        self._files = ForeignFiles(_place(settings.under, folder))
        self._existing: Existing = existing
        self._cache, self._now = BroughtModels(cache), now
        self.name = f"checkpoints {redacted(settings.under).rstrip('/')}"
        self._hint = Hint(self.name)

    def look(self, memory: ObjectStorage) -> Look:
        """The checkpoints that are whole, and what the others wait for.

        A checkpoint that cannot be read or brought here keeps none of the others from being seen.
        Raises RanksweepError where the place cannot be read; StoreError where the schedule's own
        store is away.
        """
        before = recalled(memory)
        try:
            look, now = self._seen(before)
            if self._wait is not None and any(each.endswith(_AGAIN) for each in look.waiting):
                self._wait(APART_S)
                look, now = self._seen(now)
        except StoreError as error:
            # Not of the schedule's own store, without which nothing goes on.
            raise RanksweepError(str(error).removeprefix("store: ")) from error
        note(memory, before, now)
        return look

    def _seen(self, before: Mapping[str, Any]) -> tuple[Look, dict[str, Any]]:
        """What is there now, and what the next look must know of it."""
        seen = mapping(before, "seen")
        candidates = _candidates(self._files.files())
        passed = mapping(before, "passed")
        if "passed" not in before:
            passed = _passed(self._existing, candidates)
        found: list[Sighting] = []
        waiting: list[str] = []
        seen_now: dict[str, Any] = {}
        for each in candidates:
            if passed.get(each.name) == each.signature:
                continue
            known = self._known(each, seen.get(each.name))
            seen_now[each.name] = known
            try:
                reason = self._lacking(each, known)
                if reason is None:
                    found.append(self._sighting(each))
            except (RanksweepError, OSError) as error:
                reason = _why_not(error)
            if reason is not None:
                waiting.append(f"{each.name or self._place_name}: {reason}")
        if not candidates:
            self._hint.give(self._nothing_there())
        look = Look(tuple(sorted(found, key=lambda each: each.at)), tuple(waiting))
        return look, {"passed": passed, "seen": seen_now}

    def _known(self, candidate: _Candidate, before: Any) -> dict[str, Any]:
        """What is noted of a candidate: its signature, since when it has it, and whether whole."""
        now = self._now()
        if isinstance(before, dict) and before.get("signature") == candidate.signature:
            noted = before.get("at")
            # A clock that was set back would else have it wait until the time comes again.
            if isinstance(noted, int | float) and noted <= now:
                return dict(before)
        return {"signature": candidate.signature, "at": now, "whole": False}

    def _lacking(self, candidate: _Candidate, known: dict[str, Any]) -> str | None:
        if known.get("whole") is True:
            return None
        if any(part.startswith(_STILL_WRITTEN) for part in candidate.name.split("/")):
            return "is being written by its trainer"
        if reason := lacking_in_names(candidate.names):
            return reason
        if self._now() - known["at"] < APART_S:
            return _AGAIN
        if reason := lacking(self._model(candidate)):
            return reason
        known["whole"] = True
        return None

    def _model(self, candidate: _Candidate) -> ModelFolder:
        inside = f"{candidate.name}/" if candidate.name else ""
        return ModelFolder(
            {name: file.size for name, file in candidate.parts.items()},
            lambda name, start, length: self._files.part(inside + name, start, length),
        )

    def _sighting(self, candidate: _Candidate) -> Sighting:
        if self._files.folder is not None:
            model = self._files.folder / candidate.name
        else:
            model = self._brought(candidate)
        subject = candidate.name or self._place_name
        family = self._place_name
        return Sighting(self.name, subject, f"path:{model}", candidate.at, family=family)

    def _brought(self, candidate: _Candidate) -> Path:
        place = f"{self._files.name}/{candidate.name} {candidate.signature}"
        held = self._cache.held(place)
        if held is not None:
            return held
        inside = f"{candidate.name}/" if candidate.name else ""

        def fetch(folder: Path) -> None:
            for name in candidate.parts:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                self._files.copy(inside + name, file)
            # What has come must be what was looked at: a trainer may write in the meantime.
            if lacking(ModelFolder.of(folder)) or not self._is_as_seen(candidate):
                raise _ChangedError(f"{self.name}: {candidate.name} has changed; look again")

        return self._cache.bring(place, candidate.name or self._place_name, fetch)

    def _is_as_seen(self, candidate: _Candidate) -> bool:
        there = {each.name: each.signature for each in _candidates(self._files.files())}
        return there.get(candidate.name) == candidate.signature

    def _nothing_there(self) -> str:
        folder = self._files.folder
        if folder is not None and not folder.is_dir():
            return f"{folder} is not there yet"
        return "no checkpoint is there yet"

    @property
    def _place_name(self) -> str:
        """What the place itself is called: its last folder."""
        if self._files.folder is not None:
            return Path(os.path.normpath(self._files.folder)).name or self._files.name
        return self._files.name.rstrip("/").rpartition("/")[2] or self._files.name


def _place(under: str, folder: Path) -> str:
    """The place as a store's URI; a directory is relative to the folder of the schedule."""
    scheme, separator, rest = under.partition("://")
    if separator and scheme != "file":
        return under.rstrip("/")
    path = Path(unquote(rest) if separator else under).expanduser()
    return str((folder / path).absolute())


def _why_not(error: Exception) -> str:
    """Why a checkpoint is not to be had now, by what one look at it came to."""
    if isinstance(error, _ChangedError) or (isinstance(error, StoreError) and is_gone(error)):
        return "has changed while it was looked at"
    return one_line(error).removeprefix("store: ")


def _passed(existing: Existing, candidates: Sequence[_Candidate]) -> dict[str, str]:
    """Name -> signature of what is there at the first look and does not count as it is."""
    there = [each for each in candidates if lacking_in_names(each.names) is None]
    if existing == "all":
        return {}
    newest = max(there, key=lambda each: each.at, default=None)
    counts = newest if existing == "newest" else None
    return {each.name: each.signature for each in there if each is not counts}


def _candidates(files: Mapping[str, ForeignFile]) -> list[_Candidate]:
    """The folders that look like a model, by the names of all files under the place."""
    folders: dict[str, dict[str, ForeignFile]] = {}
    for path, file in files.items():
        folder, _, name = path.rpartition("/")
        if folder.rpartition("/")[2] == "additional_chat_templates":
            folder, _, inner = folder.rpartition("/")
            name = f"{inner}/{name}"
        folders.setdefault(folder, {})[name] = file
    found = [
        _Candidate(
            folder,
            tuple(sorted(inside)),
            {name: inside[name] for name in sorted(inside) if is_a_part(name)},
        )
        for folder, inside in sorted(folders.items())
        if looks_like_a_model(inside)
    ]
    whole = {each.name for each in found if lacking_in_names(each.names) is None}
    return [each for each in found if each.name in whole or not _is_within(each.name, whole)]


def _is_within(name: str, models: Collection[str]) -> bool:
    """Whether a folder is a part of one of these, as the modules of sentence-transformers are."""
    above = (str(each) for each in PurePosixPath(name).parents) if name else ()
    return any(("" if each == "." else each) in models for each in above)
