"""The files that a task is mapped from, brought from the driver's node to those that lack them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spaces.errors import JobError, one_line
from trainables.cache_folder import FOLDER_VARIABLE, cache_folder, remove_unused
from trainables.tasks.mapped import lies_elsewhere

FOLDER = "fetched"
AT_ONCE = 2**24
"""Bytes that are asked for at a time."""


@dataclass(frozen=True)
class NodeFiles:
    """Files by their path on the driver's node, with their sizes, and the actor that reads them."""

    sizes: Mapping[str, int]
    server: Any

    def bring(self) -> None:
        """On a worker: fetch each file that is not here under its path, once a node.

        Raises JobError where it cannot be written.
        """
        for file, size in self.sizes.items():
            if size_of(file) == size:
                continue
            try:
                lies_elsewhere(file, str(self._fetched(file, size)))
            except ray.exceptions.RayError as error:  # before OSError: it may be both
                raise JobError(
                    f"task.data: {file} cannot be read on the launch's node "
                    f"({one_line(error)}); launch again"
                ) from error
            except OSError as error:
                raise JobError(
                    f"task.data: the tokens of the set cannot be written in {cache_folder()} "
                    f"({error.strerror or error}); make room there, or name another folder in "
                    f"{FOLDER_VARIABLE} on every node"
                ) from error

    def _fetched(self, file: str, size: int) -> Path:
        """Where the file lies on this node."""
        path = Path(file)
        folder = cache_folder() / FOLDER / path.parent.name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(folder)
        remove_unused(folder.parent)
        place = folder / path.name
        with FileLock(f"{place}.lock"):
            if size_of(place) == size:
                return place
            part = place.with_name(f"{place.name}.part")
            with part.open("wb") as written:
                for start in range(0, size, AT_ONCE):
                    written.write(ray.get(self.server.read.remote(file, start, AT_ONCE)))
            if size_of(part) != size:
                raise JobError(f"task.data: {file} has changed on the launch's node; launch again")
            part.replace(place)
        return place


class _FileServer:
    """Reads the files that it was started with, and no others."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = set(files)

    def read(self, file: str, start: int, size: int) -> bytes:
        if file not in self._files:
            raise ValueError(f"{file!r} is none of the task's files")
        with open(file, "rb") as opened:
            opened.seek(start)
            return opened.read(size)


def serve_files(files: Iterable[str]) -> NodeFiles | None:
    """Serve files of the driver's node as long as the driver lives; None where there are none."""
    sizes = {file: os.path.getsize(file) for file in files}
    if not sizes:
        return None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    server = ray.remote(_FileServer).options(num_cpus=0, scheduling_strategy=here)
    return NodeFiles(sizes, server.remote(list(sizes)))


def size_of(file: str | Path) -> int | None:
    """How many bytes a file has; None where it is not there."""
    try:
        return os.path.getsize(file)
    except OSError:
        return None
