"""The SHA-256 of a base's files: of a large one once a node, however many workers load it.

What was found is kept in the node's cache under what the file system says of the file, by which a
changed one is another: its path, size, inode and times of change. Where the cache cannot be written
to, every process reads the file for itself.
"""

from __future__ import annotations

import hashlib
import re
import time
from contextlib import suppress
from pathlib import Path

from trainables.cache_folder import UNUSED_S, alone, cache_folder, write_by_renaming

FOLDER = "digests"
LEAST_KEPT = 2**24
"""Bytes from which on the digest of a file is kept: a smaller one is read as quickly."""

SETTLED_S = 2.0
"""How long ago a file must have changed: a file system may not tell two changes within that time
from each other."""

PATIENCE_S = 600.0
"""How long a process waits for another one that reads the same file."""

_SHA256 = re.compile(rb"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    before = _identity(path)
    if path.stat().st_size < LEAST_KEPT or time.time() - path.stat().st_mtime < SETTLED_S:
        return _read(path)
    entry = cache_folder() / FOLDER / before
    if (known := _kept(entry)) is not None:
        return known
    with alone(entry.parent, before, PATIENCE_S):
        if (known := _kept(entry)) is not None:
            return known
        found = _read(path)
        if _identity(path) == before:
            with suppress(OSError):
                _remove_unused(entry.parent)
                write_by_renaming(entry, found.encode())
    return found


def _identity(path: Path) -> str:
    """A name for a file as it is now."""
    facts, place = path.stat(), path.resolve()
    named = (
        str(place), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns,
    )  # fmt: skip
    return hashlib.sha256(repr(named).encode()).hexdigest()


def _kept(entry: Path) -> str | None:
    try:
        data = entry.read_bytes()
        if _SHA256.fullmatch(data) is None:
            return None
        entry.touch()
    except OSError:
        return None
    return data.decode()


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_unused(folder: Path) -> None:
    """Remove the digests that nothing has asked for in a long time."""
    for entry in folder.iterdir():
        if entry.is_file() and time.time() - entry.stat().st_mtime > UNUSED_S:
            entry.unlink(missing_ok=True)
