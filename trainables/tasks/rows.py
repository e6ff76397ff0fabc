"""A task's labelled rows, in content order whatever file they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.tasks.classes import check_classes, class_notes, counted, label_names, positive_note
from trainables.tasks.drawing import drawn_part, drawn_rows
from trainables.tasks.files import file_records, hub_records
from trainables.tasks.pictures import Picture, read_picture
from trainables.tasks.records import Records
from trainables.tasks.settings import RowsSettings, SplitSettings, TaskSettings
from trainables.tasks.values import is_a_number, is_missing, kinds_of, strings_of

SPLITS = ("train", "dev", "test")
Input = str | Picture


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


@dataclass(frozen=True)
class TaskRows:
    """The rows of each split of a task, and its classes in order.

    `notes` is what a user should know of them before a launch, a line each.
    """

    splits: dict[str, Rows]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, split: str) -> Rows:
        return self.splits[split]

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> how many rows."""
        indices = {split: rows.label_indices(self.labels) for split, rows in self.splits.items()}
        return counted(self.labels, indices)


def load_rows(task: TaskSettings) -> TaskRows:
    """Read the rows of a task: train and dev, and test where there is one.

    Each split is in content order, so neither the order of a file nor its format matters; where
    there is no dev it is divided off as `task.split` says, and `task.rows` is applied last. Raises
    DataError where a file, a column, an input or a label is missing or wrong.
    """
    splits: dict[str, Rows] = {}
    notes: list[str] = []
    faults: list[str] = []
    for split, source in _sources(task).items():
        rows, wrong = _read(task, split, source, notes)
        faults += wrong
        splits[split] = rows
    if faults:
        raise DataError("; also ".join(faults))
    if "dev" not in splits:
        source = task.split.source
        splits["dev"], splits[source] = _divide(splits[source], task.split, source)
    splits = {split: _limit(splits[split], task.rows, split) for split in SPLITS if split in splits}
    labels = {split: rows.labels for split, rows in splits.items()}
    check_classes(labels, task)
    names = label_names(labels["train"])
    notes += [*positive_note(names, task), *class_notes(labels, task), *_notes_on_inputs(splits)]
    return TaskRows(splits, names, tuple(notes))


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


def _read(task: TaskSettings, split: str, source: str, notes: list[str]) -> tuple[Rows, list[str]]:
    """The rows of one split, of use where there is no fault, and its faults; notes are added."""
    data, key = task.data, "text" if task.image is None else "image"
    asked = dict.fromkeys(task.inputs, key) | {task.label: "label"}
    if data.hub is not None:
        name = f"/{data.name}" if data.name else ""
        place = f"task.data.{split} (hub: {data.hub}{name}, {source})"
        records = hub_records(task, split, source, place, asked)
    else:
        place = f"task.data.{split} ({source})"
        records = file_records(source, place, asked)
    if not records:
        raise DataError(f"{place}: has no rows; name a split that has some")
    inputs, faults = _inputs(task, records, place)
    labels, wrong = strings_of(records, task.label, "class")
    faults += [f"task.label: {place} has {fault}" for fault in wrong]
    if faults:
        return Rows([], [], []), faults
    if records.note:
        notes.append(records.note)
    kinds = kinds_of(records.columns[task.label])
    if len(kinds) > 1:
        notes.append(
            f"task.label: {place} has {' and '.join(kinds)} in {task.label!r}; a class is its "
            'written form, so 1 and "1" are one'
        )
    return Rows.of(inputs, labels), []


def _inputs(
    task: TaskSettings, records: Records, place: str
) -> tuple[list[tuple[Input, ...]], list[str]]:
    """The texts or the picture of every row, and what is wrong with them."""
    if task.image is not None:
        return _pictures(task.image, records, place)
    columns, faults = [], []
    for column in task.text:
        strings, wrong = strings_of(records, column, "text")
        columns.append(strings)
        faults += [f"task.text: {place} has {fault}" for fault in wrong]
    return list(zip(*columns, strict=not faults)), faults


def _pictures(
    column: str, records: Records, place: str
) -> tuple[list[tuple[Input, ...]], list[str]]:
    values = records.columns[column]
    missing = [index for index, value in enumerate(values) if is_missing(value)]
    if missing:
        return [], [
            f"task.image: {place} has no picture in {column!r} in {records.where(missing)}; fill "
            "it in, or drop these rows"
        ]
    inputs: list[tuple[Input, ...]] = []
    faults: list[str] = []
    for number, value in zip(records.numbers, values, strict=True):
        try:
            inputs.append(
                (read_picture(value, records.folder, f"{place} {records.unit} {number}"),)
            )
        except DataError as error:
            faults.append(str(error))
    if len(faults) > 1:
        faults = [f"{faults[0]}; the first of {len(faults)} such rows"]
    return inputs, faults


def _divide(rows: Rows, rule: SplitSettings, source: str) -> tuple[Rows, Rows]:
    """dev and the rest of a split; rows of the same content stay together."""
    label_of = dict(sorted(zip(rows.hashes, rows.labels, strict=True)))
    contents = list(label_of)
    count = int(len(contents) * rule.dev_fraction + 0.5)
    if not 0 < count < len(contents):
        raise DataError(
            f"task.split: {len(contents)} different rows of {source} cannot be divided with "
            f"dev_fraction {rule.dev_fraction}; give more rows or name a dev split"
        )
    drawn = drawn_part(list(label_of.values()), count, rule.seed, rest_keeps_all=source == "train")
    if drawn is None:
        raise DataError(
            f"task.split: dev_fraction {rule.dev_fraction} of {len(contents)} different rows "
            f"leaves train no row of some of the {len(set(rows.labels))} classes; lower it or "
            "name a dev split"
        )
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
    seed = [limits.seed, SPLITS.index(split)]
    return rows.take(drawn_rows(rows.labels, limit, seed, f"task.rows.{split}"))


def _notes_on_inputs(splits: Mapping[str, Rows]) -> Iterator[str]:
    """What is odd about texts and pictures, and how many of dev and test train has too."""
    train = set(splits["train"].inputs)
    first = splits["train"].inputs[0][0]
    what = "text" if isinstance(first, str) else "picture"
    for split in ("dev", "test"):
        if split in splits:
            shared = sum(row in train for row in splits[split].inputs)
            if shared:
                yield (
                    f"task.data.{split}: {shared} of {len(splits[split])} rows have the {what} of "
                    f"a training row; its measure is too good for an unseen {what}"
                )
    for split, rows in splits.items():
        lost = sum(
            "\ufffd" in text for texts in rows.inputs for text in texts if isinstance(text, str)
        )
        if lost:
            yield (
                f"task.text: {lost} texts of {split} hold U+FFFD, which stands for characters that "
                "were lost when the data was converted; convert it again from its source"
            )
    for column in zip(*splits["train"].inputs, strict=True):
        if all(isinstance(each, str) and is_a_number(each) for each in column):
            yield (
                f"task.text: every text of train is a number, such as {column[0]!r:.40}; see that "
                "it is the column of texts"
            )
