"""Files that others write to a folder or to object storage, read as they are and never written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from search.paths import private_files
from search.store.objects import ObjectStorage
from spaces.errors import StoreError

_PART = 8 * 2**20


@dataclass(frozen=True)
class ForeignFile:
    """A file as a listing has it; `tag` is another one where the file holds something else."""

    size: int
    tag: str
    changed: datetime
    """When it was written last, by the store's own clock."""


class ForeignFiles(ObjectStorage):
    """What is under a URI, whatever the names: nothing is created or changed there.

    Raises ConfigError for a URI that names no store, and StoreError where it cannot be read.
    """

    def files(self) -> dict[str, ForeignFile]:
        """Every file under the URI by its name within it; none where a folder is not there."""
        with self._failing_as("list", ""):
            if self.folder is not None and not self.folder.exists():
                return {}
            chunks = self._client(to_write=False).list()
            return {
                meta["path"]: ForeignFile(
                    meta["size"], meta["e_tag"] or meta["version"] or "", meta["last_modified"]
                )
                for chunk in chunks
                for meta in chunk
            }

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that it is; None where it is remote."""
        return self._connection.folder

    def part(self, name: str, start: int, length: int) -> bytes:
        """So many bytes of a file from `start` on, fewer where it ends before."""
        if length <= 0:
            return b""
        with self._failing_as("read", name):
            client = self._client(to_write=False)
            return bytes(client.get_range(name, start=start, length=length))

    def copy(self, name: str, file: Path) -> None:
        """Bring a file to a new one of this machine, readable by its owner alone.

        Raises OSError where it cannot be written here.
        """
        with self._failing_as("read", name):
            found = self._client(to_write=False).get(name)
        with private_files():
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as written:
            chunks = iter(found.stream(min_chunk_size=_PART))
            while True:
                with self._failing_as("read", name):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                written.write(chunk)


def is_gone(error: StoreError) -> bool:
    """Whether a file could not be read because it is not there any more."""
    return isinstance(error.__cause__, FileNotFoundError)
