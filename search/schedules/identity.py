"""What makes a scheduled sweep the one that it is: a model, a task and the sweep's settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rfc8785

from search.config.defaults import sweep_name_of
from search.config.sweep import SweepConfig
from search.paths import LONGEST_NAME
from trainables.bases.location import fingerprint, is_of_hub, locate
from trainables.tasks.task import build_task

VERSION = 1
DIGITS = 12
"""Hexadecimal digits of the claim's key in a sweep's name."""
_PLACES = ("name", "base", "task", "store", "tracking", "cluster", "deepspeed", "published")
"""Keys that say where and how a sweep runs, or what a fingerprint says better."""
Signature = tuple[tuple[str, int, int], ...]


def claim_key(base: str, task: str, config: SweepConfig) -> str:
    """The key of a sweep: 64 hexadecimal digits.

    SHA-256 over the canonical JSON (RFC 8785) of the fingerprints of base and task, the task's name
    and the sweep's settings that are not their defaults, without those that only say where it runs.
    """
    said = config.model_dump(mode="json", exclude_defaults=True)
    settings = {key: value for key, value in said.items() if key not in _PLACES}
    settings.get("search", {}).pop("study", None)
    left_out = {"memory_limit", "checkpoint_every", "deterministic"}
    if "profile" in settings:
        settings["profile"] = {k: v for k, v in settings["profile"].items() if k not in left_out}
    document: dict[str, Any] = {
        "version": VERSION,
        "base": base,
        "task": {"name": config.task.name, "fingerprint": task},
        "settings": settings,
    }
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def key_of_unfit(base: str, config: SweepConfig) -> str:
    """The key of a model that is none, so that its failure is told once; `base` is its URI."""
    return claim_key(f"unfit {base}", "", config)


def sweep_name(key: str, config: SweepConfig) -> str:
    """The name of a claim's sweep: that of its task, and the first digits of its key."""
    readable = sweep_name_of(config.task.name)[: LONGEST_NAME - DIGITS - 1].rstrip("-._")
    return f"{readable}-{key[:DIGITS]}"


class Fingerprints:
    """Fingerprints of bases and tasks; what is known of files that have not changed is kept.

    They hash weights and encode rows, which a schedule that looks every few minutes cannot do each
    time.
    """

    def __init__(
        self,
        of_base: Callable[[str], str] = fingerprint,
        of_task: Callable[[SweepConfig, str], str] | None = None,
    ) -> None:
        self._of_base = of_base
        self._of_task = of_task or (lambda config, base: build_task(config.task, base).fingerprint)
        self._bases: dict[tuple[str, Signature], str] = {}
        self._tasks: dict[tuple[str, str, Signature], str] = {}

    def base(self, uri: str) -> str:
        """The fingerprint of a base. Raises BaseModelError where it is none."""
        if is_of_hub(uri):  # a commit, which is asked of the hub
            return self._of_base(uri)
        key = (uri, tuple(_files(locate(uri))))
        if key not in self._bases:
            self._bases[key] = self._of_base(uri)
        return self._bases[key]

    def task(self, config: SweepConfig, base_uri: str, base: str) -> str:
        """The fingerprint of a sweep's task on a base. Raises DataError and BaseModelError.

        That of a data set of the hub is found out anew each time.
        """
        settings = config.task.model_dump(mode="json")
        key = (base, json.dumps(settings, sort_keys=True), tuple(_named_files(settings)))
        if key not in self._tasks or is_from_hub(settings):
            self._tasks[key] = self._of_task(config, base_uri)
        return self._tasks[key]


def is_from_hub(settings: Any) -> bool:
    """Whether a task's settings name a data set of the hub, wherever it stands in them."""
    if isinstance(settings, Mapping):
        return settings.get("hub") is not None or any(map(is_from_hub, settings.values()))
    return isinstance(settings, list) and any(map(is_from_hub, settings))


def _named_files(settings: Any) -> Iterator[tuple[str, int, int]]:
    """The files that a task's settings name, wherever they stand in them."""
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from _named_files(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _named_files(value)
    elif isinstance(settings, str) and len(settings) < 4096 and "\n" not in settings:
        try:
            yield from _files(Path(settings))
        except (OSError, ValueError):
            return


def _files(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change (ns) of a file, or of the files of a folder."""
    if path.is_file():
        found = path.stat()
        yield (str(path), found.st_size, found.st_mtime_ns)
    elif path.is_dir():
        for each in sorted(path.iterdir()):
            if each.is_file():
                yield from _files(each)
