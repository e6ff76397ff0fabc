"""Models that are brought to this machine: one folder for each content, and never a part of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.paths import private_files
from spaces.errors import RanksweepError
from trainables.cache_folder import remove_unused

_MODELS, _NOTES = "models", "notes"
_HEX = re.compile(r"[0-9a-f]{64}")


class BroughtModels:
    """Models in a folder of this machine, by the SHA-256 of what they hold.

    A model appears by renaming once it is whole, so that any number of processes may bring the
    same. A note says which content a place had, so that it is brought once. What no look has asked
    for in 30 days is removed when another model is brought. All of it may be removed by hand while
    no sweep runs: it is brought again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def held(self, place: str) -> Path | None:
        """The model that was brought from a place, where it is still here.

        `place` says all that would be another where the model is: address, names, sizes, tags.
        """
        try:
            digest = self._note(place).read_text()
        except (OSError, ValueError):
            return None
        found = self._there(digest) if _HEX.fullmatch(digest) else None
        if found is not None:
            with suppress(OSError):
                os.utime(found.parent)
        return found

    def bring(self, place: str, name: str, fetch: Callable[[Path], object]) -> Path:
        """The folder of a model that `fetch` writes into an empty one; called `name` if it is new.

        What `fetch` raises is passed on, and nothing is left. Raises RanksweepError where there is
        no room here.
        """
        with _room_here(self.folder), private_files():
            models = self.folder / _MODELS
            models.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=models))
            try:
                whole = part / _readable(name)
                whole.mkdir()
                fetch(whole)
                digest = _digest(whole)
                with suppress(OSError):  # another process has brought the same
                    part.rename(models / digest)
            finally:
                if part.exists():
                    shutil.rmtree(part, ignore_errors=True)
            found = self._there(digest)
            if found is None:
                raise RanksweepError(
                    f"{models / digest} is in the way of a model; remove what is there"
                )
            os.utime(found.parent)
            self._write_note(place, digest)
            remove_unused(models)
        return found

    def _there(self, digest: str) -> Path | None:
        with suppress(OSError):
            inner = [each for each in (self.folder / _MODELS / digest).iterdir() if each.is_dir()]
            if len(inner) == 1:
                return inner[0]
        return None

    def _note(self, place: str) -> Path:
        return self.folder / _NOTES / hashlib.sha256(place.encode()).hexdigest()

    def _write_note(self, place: str, digest: str) -> None:
        note = self._note(place)
        note.parent.mkdir(exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=note.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(digest)
        os.replace(part, note)


def _digest(folder: Path) -> str:
    """SHA-256 over the names and the SHA-256s of a folder's files."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _readable(name: str) -> str:
    """A name of a folder that says what the model is; it becomes the name of the base."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "model"


@contextmanager
def _room_here(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check its permissions"
        raise RanksweepError(
            f"{folder}: a model cannot be brought here ({error.strerror or error}); {remedy}, or "
            "set RANKSWEEP_CACHE to another folder"
        ) from error
