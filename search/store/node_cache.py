"""The cache of profiles on a node: each is fetched once, however many processes ask for it.

Entries are named by the SHA-256 of their bytes and appear by renaming, so a process never sees a
part of one and none is ever written to again. Locks only save downloads: where they do nothing, two
processes fetch the same bytes and the later one replaces the earlier.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.store import keys
from spaces.errors import ConfigError, ProfileError, StoreError
from spaces.profile import Profile
from trainables.settings import bytes_of

FOLDER_VARIABLE = "RANKSWEEP_CACHE"
LIMIT_VARIABLE = "RANKSWEEP_CACHE_LIMIT"
DEFAULT_LIMIT = 10 * 2**30

PATIENCE_S = 300.0
"""How long a process waits for another one's download before it downloads for itself."""
EVICTION_PATIENCE_S = 5.0
"""How long it waits for one that removes entries, which takes no time unless that is stopped."""

_LONGEST_PAUSE_S = 0.2
_ABANDONED_S = 3600.0
_ATTEMPTS = 3
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.profile-[0-9a-f]{64}\..*\.part")

_log = logging.getLogger(__name__)
_said: set[Path] = set()
_outside: list[tempfile.TemporaryDirectory[str]] = []


class NodeCache:
    """Profiles in a folder of this node, the least recently used removed beyond `limit_bytes`.

    The folder is created 0700 and its files 0600. Where it cannot be written to, or the disk is
    full, everything works without it, after one warning. An entry larger than the limit is kept
    until the next one comes.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder.absolute()
        self.limit_bytes = limit_bytes

    @classmethod
    def default(cls) -> NodeCache:
        """The cache that the environment names.

        RANKSWEEP_CACHE, else $XDG_CACHE_HOME/ranksweep, else ~/.cache/ranksweep; of
        RANKSWEEP_CACHE_LIMIT, such as "20GiB", else 10 GiB. Raises ConfigError where the limit is
        no size.
        """
        limit = os.environ.get(LIMIT_VARIABLE, "").strip()
        try:
            return cls(_default_folder(), bytes_of(limit) if limit else DEFAULT_LIMIT)
        except ValueError as error:
            raise ConfigError(f"{LIMIT_VARIABLE}: {error}") from error

    def fetch(self, sha256: str, download: Callable[[], bytes]) -> Path:
        """Path of a verified file with these bytes, named by them; `download` gives them if absent.

        Every call verifies the file. Another process may remove it at any time after (a map of it
        survives that): `open` takes this into account. Without a working cache the file lies in a
        folder of this process, which goes with it. What `download` raises is passed on. Raises
        StoreError where the download has another SHA-256, or no folder can be written to.
        """
        found = self._found(sha256, download)
        return found if isinstance(found, Path) else self._outside_file(sha256, found)

    def open(self, sha256: str, download: Callable[[], bytes]) -> Profile:
        """The profile whose file has this SHA-256, mapped from the cache, downloaded if absent.

        Raises as `fetch` does, and ProfileError where the bytes are no profile.
        """
        entry = self._entry(sha256)
        with suppress(ProfileError):  # absent, damaged or no profile: found out below
            profile = Profile.read(entry)
            _mark_used(entry)
            return profile
        for _ in range(_ATTEMPTS):
            found = self._found(sha256, download)
            if isinstance(found, bytes):
                return Profile.from_bytes(found, entry.name)
            try:
                return Profile.read(found)
            except ProfileError as error:
                # Anything but the verified bytes' own fault: the file has just been removed.
                if isinstance(error.__cause__, ProfileError):
                    raise
        return Profile.from_bytes(_downloaded(sha256, download), entry.name)

    # Inside -----------------------------------------------------------------------------------

    def _entry(self, sha256: str) -> Path:
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in hexadecimal")
        return self.folder / keys.profile_file_name(sha256)

    def _found(self, sha256: str, download: Callable[[], bytes]) -> Path | bytes:
        """The verified entry; the bytes themselves where the cache cannot keep them."""
        entry = self._entry(sha256)
        if self._is_whole(entry, sha256):
            return entry
        self._make_folders()
        # One lock for many keys, so that their number is bounded and none need ever be removed.
        with self._locked(sha256[:2], PATIENCE_S):
            if self._is_whole(entry, sha256):
                return entry
            self._drop_damaged(entry)
            data = _downloaded(sha256, download)
            if not self._keep(entry, data):
                return data
        self._evict_all_but(entry)
        return entry

    def _is_whole(self, entry: Path, sha256: str) -> bool:
        try:
            with entry.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return False
        if digest == sha256:
            _mark_used(entry)
        return digest == sha256

    def _drop_damaged(self, entry: Path) -> None:
        with suppress(OSError):
            entry.unlink()
            _log.warning("cache: %s does not have the SHA-256 in its name; fetched again", entry)

    def _make_folders(self) -> None:
        # What cannot be made here cannot be written to below, where it is said.
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._locks.mkdir(exist_ok=True, mode=0o700)

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    @contextmanager
    def _locked(self, name: str, patience_s: float) -> Iterator[None]:
        """Hold a lock against other processes and threads, as far as the file system can."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._locks / f"{name}.lock", flags, 0o600)
        except OSError:
            yield
            return
        try:
            _wait_for_lock(descriptor, patience_s)
            yield
        finally:
            os.close(descriptor)

    def _keep(self, entry: Path, data: bytes) -> bool:
        """Write an entry; False, and a warning once, where it cannot be kept."""
        try:
            _write_by_renaming(entry, data)
        except OSError as error:
            if self.folder not in _said:
                _said.add(self.folder)
                _log.warning(
                    "cache: cannot write to %s (%s); profiles are fetched each time, set %s to a "
                    "folder with space",
                    self.folder,
                    error.strerror,
                    FOLDER_VARIABLE,
                )
            return False
        return True

    def _evict_all_but(self, kept: Path) -> None:
        """Remove the least recently used entries beyond the limit, and what dead writers left."""
        with self._locked("evict", EVICTION_PATIENCE_S), suppress(OSError):
            used: list[tuple[int, str, int]] = []
            for file in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    facts = file.stat(follow_symlinks=False)
                    if keys.sha256_of_file_name(file.name):
                        used.append((facts.st_mtime_ns, file.name, facts.st_size))
                    elif _PART.fullmatch(file.name) and _is_abandoned(facts.st_mtime):
                        os.unlink(file.path)
            excess = sum(size for _, _, size in used) - self.limit_bytes
            for _, name, size in sorted(used):
                if excess <= 0:
                    return
                if name != kept.name:
                    (self.folder / name).unlink(missing_ok=True)
                    excess -= size

    def _outside_file(self, sha256: str, data: bytes) -> Path:
        """A file of this process alone, for a cache that cannot be written to."""
        try:
            if not _outside:
                _outside.append(tempfile.TemporaryDirectory(prefix="ranksweep-"))
            path = Path(_outside[0].name) / keys.profile_file_name(sha256)
            _write_by_renaming(path, data)
        except OSError as error:
            raise StoreError(
                f"cache: cannot write to {self.folder} nor to {tempfile.gettempdir()} "
                f"({error.strerror}); free space there or set {FOLDER_VARIABLE}"
            ) from error
        return path


def _default_folder() -> Path:
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    if named:
        return Path(named).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "ranksweep"
    try:
        return Path.home() / ".cache" / "ranksweep"
    except RuntimeError:
        # A process without a home has no cache either: nothing can be made in this place.
        return Path(os.devnull) / "ranksweep"


def _downloaded(sha256: str, download: Callable[[], bytes]) -> bytes:
    data = download()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise StoreError(
            f"cache: {len(data)} bytes with the SHA-256 {digest} came for {sha256}; run "
            "`ranksweep profiles verify`"
        )
    return data


def _write_by_renaming(path: Path, data: bytes) -> None:
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


def _mark_used(entry: Path) -> None:
    with suppress(OSError):
        os.utime(entry)


def _is_abandoned(modified: float) -> bool:
    return time.time() - modified > _ABANDONED_S


def _wait_for_lock(descriptor: int, patience_s: float) -> None:
    """Return when the lock is held, cannot be had on this file system, or patience has ended."""
    deadline = time.monotonic() + patience_s
    pause = 0.005
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
