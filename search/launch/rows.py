"""The rows of a task as files, which another task, or another program, can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from spaces.errors import ConfigError, RanksweepError
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.rows import SPLITS, Rows, TaskRows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.suite import member_settings


def write_rows(rows: TaskRows, task: TaskSettings, folder: Path) -> dict[str, Path]:
    """Write train.jsonl, dev.jsonl and, where there is one, test.jsonl; returns split -> file.

    Those of a suite's members lie in a folder each, and their splits are `<member>/<split>`.
    A line is a row in the task's own columns: its texts, or a picture's path (null where the data
    holds the picture itself) and its SHA-256, and its class as a string. The rows are in content
    order. Raises ConfigError where one of the files is there already or the folder cannot be made,
    RanksweepError where the disk is full.
    """
    members = member_settings(task)
    splits = [*SPLITS, *(f"{member.name}/{split}" for member in members for split in SPLITS[1:])]
    paths = {split: folder / f"{split}.jsonl" for split in splits}
    tasks = {member.name: member for member in members}
    for path in paths.values():
        if path.exists() or path.is_symlink():
            raise ConfigError(f"--out: {path} is there already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out: {folder} cannot be made ({error.strerror or error}); name another"
        ) from error
    written: dict[str, Path] = {}
    try:
        for split, part in rows.every_split.items():
            paths[split].parent.mkdir(exist_ok=True)
            with paths[split].open("x", encoding="utf-8") as file:
                written[split] = paths[split]
                file.writelines(_lines(part, tasks.get(split.partition("/")[0], task)))
    except OSError as error:
        for path in written.values():
            path.unlink(missing_ok=True)
        raise RanksweepError(
            f"--out: {folder} could not be written ({error.strerror or error}); make room or name "
            "another place"
        ) from error
    return written


def _lines(rows: Rows, task: TaskSettings) -> Iterator[str]:
    kind = kind_of(task.kind)
    for inputs, label in zip(rows.inputs, rows.labels, strict=True):
        yield json.dumps(kind.written(inputs, label, task), ensure_ascii=False) + "\n"
