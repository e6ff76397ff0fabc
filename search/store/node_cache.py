"""The cache of profiles on a node: each is fetched once, however many processes ask for it.

Entries are named by the SHA-256 of their bytes and appear by renaming, so a process never sees a
part of one and none is ever written to again. Locks only save downloads: where they do nothing, two
processes fetch the same bytes and the later one replaces the earlier.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from search.store import keys
from spaces.errors import ConfigError, StoreError
from spaces.files import tensor_file
from spaces.profile import Profile
from trainables.cache_folder import FOLDER_VARIABLE, alone, cache_folder, write_by_renaming
from trainables.settings import bytes_of

LIMIT_VARIABLE = "RANKSWEEP_CACHE_LIMIT"
DEFAULT_LIMIT = 10 * 2**30

PATIENCE_S = 300.0
"""How long a process waits for another one's download before it downloads for itself."""

_ABANDONED_S = 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"\.profile-[0-9a-f]{64}\..*\.part")

_log = logging.getLogger(__name__)
said_of: set[Path] = set()


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
            return cls(cache_folder(), bytes_of(limit) if limit else DEFAULT_LIMIT)
        except ValueError as error:
            raise ConfigError(f"{LIMIT_VARIABLE}: {error}") from error

    def open(self, sha256: str, download: Callable[[], bytes]) -> Profile:
        """The profile whose file has this SHA-256, mapped from the cache, downloaded if absent.

        Every call verifies the file, which another process may remove at any time after: a map of
        it survives that. What `download` raises is passed on. Raises StoreError where the download
        has another SHA-256, and ProfileError where the bytes are no profile.
        """
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r} is no SHA-256 in hexadecimal")
        entry = self.folder / keys.profile_file_name(sha256)
        data: tensor_file.Bytes | bytes | None = _mapped(entry, sha256)
        if data is None:
            data = self._fetched(entry, sha256, download)
        return Profile.from_bytes(data, entry.name)

    def _fetched(
        self, entry: Path, sha256: str, download: Callable[[], bytes]
    ) -> tensor_file.Bytes | bytes:
        """The entry's bytes after a download, this process's or another's, mapped where kept."""
        with alone(self.folder, sha256, PATIENCE_S):
            mapped = _mapped(entry, sha256)
            if mapped is not None:
                return mapped
            if os.path.exists(entry):
                _log.warning(
                    "cache: %s does not have the SHA-256 in its name; fetched again", entry
                )
            data = _downloaded(sha256, download)
            try:
                write_by_renaming(entry, data)
                self._evict_all_but(entry)
            except OSError as error:
                self._say_once(error)
                return data
        mapped = _mapped(entry, sha256)
        return data if mapped is None else mapped

    def _say_once(self, error: OSError) -> None:
        if self.folder not in said_of:
            said_of.add(self.folder)
            _log.warning(
                "cache: cannot write to %s (%s); profiles are fetched each time, set %s to a "
                "folder with space",
                self.folder,
                error.strerror,
                FOLDER_VARIABLE,
            )

    def _evict_all_but(self, kept: Path) -> None:
        """Remove the least recently used entries beyond the limit, and what dead writers left."""
        used: list[tuple[int, str, int]] = []
        for file in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                facts = file.stat(follow_symlinks=False)
                if keys.sha256_of_file_name(file.name):
                    used.append((facts.st_mtime_ns, file.name, facts.st_size))
                elif _PART.fullmatch(file.name) and time.time() - facts.st_mtime > _ABANDONED_S:
                    os.unlink(file.path)
        excess = sum(size for _, _, size in used) - self.limit_bytes
        for _, name, size in sorted(used):
            if excess > 0 and name != kept.name:
                (self.folder / name).unlink(missing_ok=True)
                excess -= size


def _mapped(entry: Path, sha256: str) -> tensor_file.Bytes | None:
    """The verified bytes of an entry, marked as used; None where it is absent or damaged."""
    try:
        data = tensor_file.mapped(entry)
    except OSError:
        return None
    if hashlib.sha256(data.data).hexdigest() != sha256:
        return None
    with suppress(OSError):
        os.utime(entry)
    return data


def _downloaded(sha256: str, download: Callable[[], bytes]) -> bytes:
    data = download()
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise StoreError(
            f"cache: {len(data)} bytes with the SHA-256 {digest} came for {sha256}; run "
            "`ranksweep profiles verify`"
        )
    return data
