"""Where on a node lies what can be fetched or computed again."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER_VARIABLE = "RANKSWEEP_CACHE"
UNUSED_S = 30 * 86400.0

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """RANKSWEEP_CACHE, else $XDG_CACHE_HOME/ranksweep, else ~/.cache/ranksweep."""
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    if named:
        return Path(named).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "ranksweep"
    try:
        return Path.home().absolute() / ".cache" / "ranksweep"
    except RuntimeError:
        # A process without a home has no cache either: nothing can be made in this place.
        return Path(os.devnull) / "ranksweep"


def remove(folder: Path) -> None:
    """Remove a folder that may be there; nobody ever finds a part of it under its name."""
    aside = folder.with_name(f".{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_unused(folder: Path) -> None:
    """Remove the folders in it that nothing has used, as their time of change says, for `UNUSED_S`
    seconds, and what was left half written or half removed."""
    for entry in folder.iterdir():
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED_S:
                remove(entry)
                _log.info("removed %s, which nothing has used for a month", entry)


@contextmanager
def alone(folder: Path, sha256: str, patience_s: float) -> Iterator[None]:
    """Keep other processes and threads from the same work, as far as the disk can.

    `sha256` names the work. Locks only save it: who has waited for `patience_s` seconds, or finds
    no place for a lock in `folder`, goes on without.
    """
    locks = folder / "locks"
    # One lock for many names, so that their number is bounded and none need ever be removed.
    lock = FileLock(
        locks / f"{sha256[:2]}.lock", timeout=patience_s, mode=0o600, fallback_to_soft=False
    )
    with suppress(OSError, Timeout):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        locks.mkdir(exist_ok=True, mode=0o700)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_by_renaming(path: Path, data: bytes) -> None:
    """Write a file, 0600, that appears under its name only when it is whole."""
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
