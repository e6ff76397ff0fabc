"""A task's labelled rows, in content order whatever file they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import DataError
from trainables.tasks.care import notes_on_rows
from trainables.tasks.classes import counted
from trainables.tasks.drawing import drawn_part, drawn_rows
from trainables.tasks.files import file_chunks, hub_chunks
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import kind_of
from trainables.tasks.paced import Paced
from trainables.tasks.pictures import Picture
from trainables.tasks.records import Records
from trainables.tasks.settings import RowsSettings, SplitSettings, TaskSettings
from trainables.tasks.stored_rows import RowFile, Stored, canonical
from trainables.tasks.suite import member_errors, member_settings, of_member

SPLITS = ("train", "dev", "test")
ASKED = "rows"
"""A split of rows that a trained model is to answer: nothing is learned or chosen by them, so they
may be as they are."""
Input = str | Picture
BLOCK = 2**20
"""Characters of rows that become tokens at a time: a tokenizer takes 50 times their bytes."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split in content order: by the SHA-256 of a row's inputs and label.

    `inputs` holds the texts of a row, or its picture; `labels` the label of each as a string: its
    class, its number, its answer; `hashes` the content hash of each, in hex.
    """

    inputs: Sequence[tuple[Input, ...]]
    labels: Sequence[str]
    hashes: Sequence[str]

    @classmethod
    def of(cls, inputs: Iterable[tuple[Input, ...]], labels: Iterable[str]) -> Rows:
        """Rows in content order, whatever the order they come in."""
        hashed = [
            (content_hash(row, label), row, label)
            for row, label in zip(inputs, labels, strict=True)
        ]
        rows = sorted(hashed, key=lambda row: row[0])
        return cls([row[1] for row in rows], [row[2] for row in rows], [row[0] for row in rows])

    @property
    def are_stored(self) -> bool:
        """Whether they lie in a file, for they may be larger than memory."""
        return isinstance(self.inputs, Stored)

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at `indices`, in the order of `indices`."""
        kept = list(indices)
        return Rows(_at(self.inputs, kept), _at(self.labels, kept), _at(self.hashes, kept))

    def blocks(self) -> Iterator[tuple[list[tuple[Input, ...]], list[str]]]:
        """The inputs and labels of every row, as many rows at a time as have `BLOCK` characters."""
        inputs: list[tuple[Input, ...]] = []
        labels: list[str] = []
        characters = 0
        for row, label in zip(self.inputs, self.labels, strict=True):
            inputs.append(row)
            labels.append(label)
            characters += len(label) + sum(len(each) for each in row if isinstance(each, str))
            if characters >= BLOCK:
                yield inputs, labels
                inputs, labels, characters = [], [], 0
        if inputs:
            yield inputs, labels

    def label_indices(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """The place of each row's label among `labels`, int64 [n]."""
        index = {label: i for i, label in enumerate(labels)}
        return np.array([index[label] for label in self.labels], dtype=np.int64)


def _at(column: Sequence[Any], indices: list[int]) -> Sequence[Any]:
    return column.take(indices) if isinstance(column, Stored) else [column[i] for i in indices]


def content_hash(inputs: Sequence[Input], label: str) -> str:
    """SHA-256, in hex, of the canonical JSON of a row's inputs and label.

    A picture counts by the SHA-256 of its encoded bytes, so it is the same row in whatever file.
    """
    content = [i if isinstance(i, str) else {"sha256": i.sha256} for i in inputs]
    return hashlib.sha256(canonical(content, label)).hexdigest()


@dataclass(frozen=True)
class TaskRows:
    """The rows of each split of a task, and its classes in order, none where it has no classes.

    `notes` is what a user should know of them before a launch, a line each. `suite` has those of
    each member: its dev, and test where it has one.
    """

    splits: dict[str, Rows]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    suite: Mapping[str, TaskRows] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Rows:
        return self.splits[split]

    @property
    def every_split(self) -> dict[str, Rows]:
        """The splits of the task, and those of each member of its suite as `<member>/<split>`."""
        own = dict(self.splits)
        for name, member in self.suite.items():
            own |= {f"{name}/{split}": rows for split, rows in member.splits.items()}
        return own

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> how many rows; nothing where the task has no classes."""
        if not self.labels:
            return {}
        indices = {
            split: rows.label_indices(self.labels) for split, rows in self.every_split.items()
        }
        return counted(self.labels, indices)


def load_rows(task: TaskSettings) -> TaskRows:
    """Read the rows of a task: train and dev, and test where there is one; of a task with a suite
    train alone, and dev and test of each member.

    Each split is in content order, so neither the order of a file nor its format matters; where
    there is no dev it is divided off as `task.split` says, and `task.rows` is applied last. Raises
    DataError where a file, a column, an input or a label is missing or wrong.
    """
    kind = kind_of(task.kind)
    splits, notes = _splits(task, kind, _sources(task))
    kind.check_rows(splits, task)
    names = kind.labels(splits["train"])
    notes += [*kind.notes(splits, task), *notes_on_rows(splits, kind, task)]
    suite: dict[str, TaskRows] = {}
    for index, member in enumerate(member_settings(task)):
        with member_errors(index):
            suite[member.name] = _member_rows(member, task, splits["train"], names, notes)
        notes += [of_member(note, index) for note in suite[member.name].notes]
    return TaskRows(splits, names, tuple(dict.fromkeys(notes)), suite)


def _member_rows(
    member: TaskSettings,
    task: TaskSettings,
    train: Rows,
    labels: tuple[str, ...],
    known: Sequence[str],
) -> TaskRows:
    """The rows that a member of a suite is measured on; its notes are those not `known`."""
    kind = kind_of(member.kind)
    sources = {split: name for split, name in _sources(member).items() if split != "train"}
    splits, notes = _splits(member, kind, sources)
    beside = {"train": train, **splits} if member.kind == task.kind else splits
    kind.check_rows(beside, member)
    notes += [*kind.notes(beside, member), *notes_on_rows(beside, kind, member)]
    return TaskRows(splits, labels, tuple(note for note in notes if note not in known))


def _splits(
    task: TaskSettings, kind: Kind, sources: Mapping[str, str]
) -> tuple[dict[str, Rows], list[str]]:
    """The rows of every split, in content order, and what a user should know of their files."""
    splits: dict[str, Rows] = {}
    notes: list[str] = []
    faults: list[str] = []
    for split, source in sources.items():
        rows, wrong = _read(task, kind, split, source, notes)
        faults += wrong
        splits[split] = rows
    if faults:
        raise DataError("; also ".join(dict.fromkeys(faults)))
    if "dev" not in splits and not task.suite:
        source = task.split.source
        splits["dev"], splits[source] = _divide(splits[source], kind, task.split, source)
    limited = {
        split: _limit(splits[split], kind, task.rows, split) for split in SPLITS if split in splits
    }
    return limited, notes


def _sources(task: TaskSettings) -> dict[str, str]:
    """Split -> the file, or the split of a hub data set, that it is read from."""
    data = task.data
    sources = {split: name for split in SPLITS if (name := getattr(data, split)) is not None}
    if data.hub is not None:
        sources.setdefault("train", "train")
        if "dev" not in sources and "test" not in sources and task.split.source == "test":
            sources["test"] = "validation"
    if task.suite:
        return {"train": sources["train"]}
    if "dev" not in sources and task.split.source not in sources:
        raise DataError(
            "task.data: has neither dev nor test; name one, or take dev from train with "
            "task.split: {source: train}"
        )
    return sources


def _read(
    task: TaskSettings, kind: Kind, split: str, source: str, notes: list[str]
) -> tuple[Rows, list[str]]:
    """The rows of one split, of use where there is no fault, and its faults; notes are added."""
    data, asked = task.data, kind.columns(task)
    if data.hub is not None:
        name = f"/{data.name}" if data.name else ""
        place = f"task.data.{split} (hub: {data.hub}{name}, {source})"
        chunks = hub_chunks(task, split, source, place, asked, whole=not kind.streams)
    else:
        place = f"task.data.{split} ({source})"
        chunks = file_chunks(source, place, asked, whole=not kind.streams)
    first = next(chunks, None)
    if first is None or not first:
        raise DataError(f"{place}: has no rows; name a split that has some")
    second = next(chunks, None)
    if second is not None:
        return _stored(chain((first, second), chunks), task, kind, place, notes)
    read = kind.read(first, task, place)
    if read.faults:
        return Rows([], [], []), read.faults
    notes += [note for note in (first.note, *read.notes) if note]
    return Rows.of(read.inputs, read.labels), []


def _stored(
    chunks: Iterable[Records], task: TaskSettings, kind: Kind, place: str, notes: list[str]
) -> tuple[Rows, list[str]]:
    """The rows of a split that is read in parts, in a file; the first part with a fault ends it."""
    rows, say = RowFile(), Paced(f"{place}: a large set; {{:,}} rows have been read")
    for records in chunks:
        say(len(rows))
        read = kind.read(records, task, place)
        if read.faults:
            return Rows([], [], []), read.faults
        notes += [note for note in (records.note, *read.notes) if note and note not in notes]
        rows.extend(read.inputs, read.labels)  # type: ignore[arg-type]  # texts alone are streamed
    return Rows(*rows.columns()), []


def _divide(rows: Rows, kind: Kind, rule: SplitSettings, source: str) -> tuple[Rows, Rows]:
    """dev and the rest of a split; rows of the same content stay together."""
    group_of = dict(sorted(zip(rows.hashes, kind.strata(rows), strict=True)))
    contents = list(group_of)
    count = int(len(contents) * rule.dev_fraction + 0.5)
    if not 0 < count < len(contents):
        raise DataError(
            f"task.split: {len(contents)} different rows of {source} cannot be divided with "
            f"dev_fraction {rule.dev_fraction}; give more rows or name a dev split"
        )
    drawn = drawn_part(list(group_of.values()), count, rule.seed, rest_keeps_all=source == "train")
    if drawn is None:
        raise DataError(
            f"task.split: dev_fraction {rule.dev_fraction} of {len(contents)} different rows "
            f"leaves train no row of some of the {len(set(group_of.values()))} classes; lower it "
            "or name a dev split"
        )
    dev = {contents[i] for i in drawn}
    in_dev = [content in dev for content in rows.hashes]
    return (
        rows.take(i for i, inside in enumerate(in_dev) if inside),
        rows.take(i for i, inside in enumerate(in_dev) if not inside),
    )


def _limit(rows: Rows, kind: Kind, limits: RowsSettings, split: str) -> Rows:
    """A seeded choice of as many rows as `limits` keeps of this split, in content order."""
    limit: int | None = getattr(limits, split)
    if limit is None or limit >= len(rows):
        return rows
    seed = [limits.seed, SPLITS.index(split)]
    return rows.take(drawn_rows(kind.strata(rows), limit, seed, f"task.rows.{split}"))
