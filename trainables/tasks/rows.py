"""A task's labelled rows, in content order whatever file they come from."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.tasks.files import Record, file_records, hub_records
from trainables.tasks.pictures import Picture, read_picture
from trainables.tasks.settings import RowsSettings, SplitSettings, TaskSettings

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
Input = str | Picture
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Rows:
    """The rows of one split in content order: by the SHA-256 of a row's inputs and label.

    `inputs` holds one or two texts a row, or one picture; `labels` the label of each as a string;
    `hashes` the content hash of each, in hex.
    """

    inputs: list[tuple[Input, ...]]
    labels: list[str]
    hashes: list[str]

    @classmethod
    def of(cls, inputs: Iterable[tuple[Input, ...]], labels: Iterable[str]) -> Rows:
        """Rows in content order, whatever the order they come in."""
        hashed = [
            (content_hash(row, label), row, label)
            for row, label in zip(inputs, labels, strict=True)
        ]
        rows = sorted(hashed, key=lambda row: row[0])
        return cls([row[1] for row in rows], [row[2] for row in rows], [row[0] for row in rows])

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, in the order of `indices`."""
        kept = list(indices)
        return Rows(
            [self.inputs[i] for i in kept],
            [self.labels[i] for i in kept],
            [self.hashes[i] for i in kept],
        )

    def label_indices(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """The place of each row's label among `labels`, int64 [n]."""
        index = {label: i for i, label in enumerate(labels)}
        return np.array([index[label] for label in self.labels], dtype=np.int64)


def content_hash(inputs: Sequence[Input], label: str) -> str:
    """SHA-256, in hex, of the canonical JSON of a row's inputs and label.

    A picture counts by the SHA-256 of its encoded bytes, so it is the same row in whatever file.
    """
    content = [i if isinstance(i, str) else {"sha256": i.sha256} for i in inputs]
    canonical = json.dumps([content, label], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def load_rows(task: TaskSettings) -> dict[str, Rows]:
    """Read the rows of a task: train and dev, and test where there is one.

    Each split is in content order, so neither the order of a file nor its format matters; where
    there is no dev it is divided off as `task.split` says, and `task.rows` is applied last. Raises
    DataError where a file, a column, an input or a label is missing or wrong.
    """
    sources = _sources(task)
    splits = {split: _read(task, split, source) for split, source in sources.items()}
    if "dev" not in splits:
        source = task.split.source
        splits["dev"], splits[source] = _divide(splits[source], task.split, source)
    splits = {split: _limit(splits[split], task.rows, split) for split in SPLITS if split in splits}
    _check_labels(splits)
    _warn_of_shared_inputs(splits)
    return splits


def label_names(rows: Rows) -> tuple[str, ...]:
    """The classes of a split in order: numerically where all are integers, else by code point."""
    names = set(rows.labels)
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _sources(task: TaskSettings) -> dict[str, str]:
    """Split -> the file, or the split of a hub data set, that it is read from."""
    data = task.data
    sources = {split: name for split in SPLITS if (name := getattr(data, split)) is not None}
    if data.hub is not None:
        sources.setdefault("train", "train")
        if "dev" not in sources and "test" not in sources and task.split.source == "test":
            sources["test"] = "validation"
    if "dev" not in sources and task.split.source not in sources:
        raise DataError(
            "task.data: has neither dev nor test; name one, or take dev from train with "
            "task.split: {source: train}"
        )
    return sources


def _read(task: TaskSettings, split: str, source: str) -> Rows:
    """The rows of one split."""
    place = f"task.data.{split} ({source})"
    key = "text" if task.image is None else "image"
    wanted = {key: task.inputs, "label": (task.label,)}
    folder: Path | None = None
    if task.data.hub is not None:
        records = hub_records(task, split, source)
    else:
        records, folder = file_records(source, place)
    if not records:
        raise DataError(f"{place}: has no rows; name a split that has some")
    for name, columns in wanted.items():
        for column in columns:
            if column not in records[0]:
                raise DataError(
                    f"task.{name}: {place} has no column {column!r}; its columns are "
                    f"{', '.join(map(str, records[0]))}"
                )
    inputs = [_inputs(task, record, folder, place, row) for row, record in enumerate(records)]
    labels = [_label(record, task.label, place, row) for row, record in enumerate(records)]
    return Rows.of(inputs, labels)


def _inputs(
    task: TaskSettings, record: Record, folder: Path | None, place: str, row: int
) -> tuple[Input, ...]:
    """The texts or the picture of one row."""
    if task.image is None:
        return tuple(_text(record, column, place, row) for column in task.text)
    return (read_picture(record.get(task.image), folder, f"{place} row {row}"),)


def _text(record: Record, column: str, place: str, row: int) -> str:
    value = record.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"task.text: {place} row {row} has {_shown(value)} in {column!r}, not a text; drop the "
            "row or name another column"
        )
    return value


def _label(record: Record, column: str, place: str, row: int) -> str:
    value = record.get(column)
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int) or value == "":
        raise DataError(
            f"task.label: {place} row {row} has {_shown(value)} in {column!r}; a class is a "
            "string, an integer or a boolean"
        )
    return str(value)


def _shown(value: object) -> str:
    return "nothing" if value is None or value == "" else f"{type(value).__name__} {value!r:.40}"


def _divide(rows: Rows, rule: SplitSettings, source: str) -> tuple[Rows, Rows]:
    """dev and the rest of a split; rows of the same content stay together."""
    contents = sorted(set(rows.hashes))
    count = int(len(contents) * rule.dev_fraction + 0.5)
    if not 0 < count < len(contents):
        raise DataError(
            f"task.split: {len(contents)} different rows of {source} cannot be divided with "
            f"dev_fraction {rule.dev_fraction}; give more rows or name a dev split"
        )
    drawn = np.random.default_rng(rule.seed).permutation(len(contents))[:count]
    dev = {contents[i] for i in drawn}
    in_dev = [content in dev for content in rows.hashes]
    return (
        rows.take(i for i, inside in enumerate(in_dev) if inside),
        rows.take(i for i, inside in enumerate(in_dev) if not inside),
    )


def _limit(rows: Rows, limits: RowsSettings, split: str) -> Rows:
    """A seeded choice of as many rows as `limits` keeps of this split, in content order."""
    limit: int | None = getattr(limits, split)
    if limit is None or limit >= len(rows):
        return rows
    generator = np.random.default_rng([limits.seed, SPLITS.index(split)])
    return rows.take(sorted(generator.choice(len(rows), limit, replace=False).tolist()))


def _check_labels(splits: Mapping[str, Rows]) -> None:
    """Raise DataError where train has one class, or another split a class that train lacks."""
    known = label_names(splits["train"])
    if len(known) < 2:
        raise DataError(
            f"task.label: every row of train is {known[0]!r}; a classification needs two classes"
        )
    for split, rows in splits.items():
        unknown = sorted(set(rows.labels) - set(known))
        if unknown:
            raise DataError(
                f"task.label: {split} has the label {unknown[0]!r}, which no row of train has "
                f"({', '.join(known[:10])}); correct it or give train such rows"
            )


def _warn_of_shared_inputs(splits: Mapping[str, Rows]) -> None:
    """Say how many rows of dev and test have a text, or a picture, that train has too."""
    train = set(splits["train"].inputs)
    what = "text" if isinstance(splits["train"].inputs[0][0], str) else "picture"
    for split in ("dev", "test"):
        if split in splits:
            shared = sum(row in train for row in splits[split].inputs)
            if shared:
                logger.warning(
                    "task.data.%s: %d of %d rows have the %s of a training row; its measure is "
                    "too good for an unseen %s",
                    split,
                    shared,
                    len(splits[split]),
                    what,
                    what,
                )
