"""A task made ready for a base: its splits as the base's inputs, and what names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from torch import nn

from trainables.bases.heads import Classes
from trainables.bases.packing import may_pack, packs_exactly
from trainables.tasks.care import LongRow, longest_rows
from trainables.tasks.classes import counted, positive_index
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import check_metric, kind_of, own_metric
from trainables.tasks.mapped import files_of
from trainables.tasks.own import is_own, own_code
from trainables.tasks.rows import TaskRows, load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import Split, labels_of
from trainables.tasks.stored_rows import Stored
from trainables.tasks.suite import member_errors, member_settings, of_member


@dataclass(frozen=True)
class Task:
    """A task made ready for one base: its splits as the base's inputs, and what names it.

    `train_fingerprint` covers the training rows and how they become inputs, which is all that a
    profile depends on; `fingerprint` adds dev, test and the metric. The code of a kind or a metric
    of the user's own is a part of what names it. `labels` are the task's classes, none where it has
    no classes; `positive` is the index of the one that f1 counts as positive, of two. `notes` is
    what a user should know before a launch. `rows` has, of each split, what names its rows alone.
    `example` is a row as the base reads it (`EncodedRows`), and
    `longest` are the longest rows.
    `own` has what the user's own import paths name, for the workers, which need not find them.

    A task with a `suite` has train alone and is measured on each of the members in it, tasks
    without train that have the base's head in common; `metric` names the mean of theirs.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    splits: dict[str, Split]
    metric: str
    train_fingerprint: str
    fingerprint: str
    positive: int = 1
    notes: tuple[str, ...] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    example: tuple[tuple[str, bool], ...] = ()
    longest: tuple[LongRow, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    suite: Mapping[str, Task] = field(default_factory=dict)

    @property
    def measured(self) -> tuple[Task, ...]:
        """The tasks that it is measured on: the members of its suite, or itself."""
        return tuple(self.suite.values()) or (self,)

    @property
    def every_split(self) -> dict[str, Split]:
        """Its splits, and those of each member of its suite as `<member>/<split>`."""
        own = dict(self.splits)
        for name, member in self.suite.items():
            own |= {f"{name}/{split}": rows for split, rows in member.splits.items()}
        return own

    @property
    def files(self) -> set[str]:
        """The files of this node that its splits are mapped from."""
        return files_of(
            each for split in self.every_split.values() for each in vars(split).values()
        )

    def lacking(self, split: str) -> tuple[str, ...]:
        """The names of the tasks that it is measured on and that have no such split."""
        return tuple(each.name for each in self.measured if split not in each.splits)

    def rows_of(self, split: str) -> int:
        """How many rows it is measured on of a split that it has."""
        return sum(len(each.splits[split]) for each in self.measured)

    def first(self, split: str, rows: int) -> Task:
        """The task with at most `rows` rows of that split; each member of a suite with so many."""
        suite = {name: member.first(split, rows) for name, member in self.suite.items()}
        own = {split: self.splits[split].first(rows)} if split in self.splits else {}
        return replace(self, splits={**self.splits, **own}, suite=suite)

    def fitted(self, model: nn.Module) -> Task:
        """The task as it goes through a loaded base."""
        return self._fitted(cache(partial(packs_exactly, model)))

    def expected(self, base_uri: str) -> Task:
        """The task as it is likely to go through a base that is not loaded."""
        return self._fitted(cache(partial(may_pack, base_uri, self.head)))

    def _fitted(self, packs: Callable[[], bool]) -> Task:
        suite = {name: member._fitted(packs) for name, member in self.suite.items()}
        return replace(self.its_kind.fitted(self, packs), suite=suite)

    @property
    def data_fingerprint(self) -> str:
        """`fingerprint` but for the metric's name: equal where measured on the same data."""
        if self.suite:
            members = {name: member.data_fingerprint for name, member in self.suite.items()}
            return _fingerprint({"train": self.train_fingerprint, "suite": members})
        others = {split: rows for split, rows in self.rows.items() if split != "train"}
        of_metric = {} if self.positive == 1 else {"positive": self.labels[self.positive]}
        return _fingerprint({"train": self.train_fingerprint, "rows": others, **of_metric})

    @property
    def its_kind(self) -> Kind:
        """The kind itself."""
        return self.own.get(self.kind) or kind_of(self.kind)

    @property
    def head(self) -> str:
        """The head that a base needs for it, as trainables/bases/parts.py names it."""
        return self.its_kind.head

    @property
    def outputs(self) -> Classes:
        """What that head gives: the classes by name; without classes, one number."""
        return self.labels or 1

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> how many rows; nothing where the task has no classes."""
        if not self.labels:
            return {}
        return counted(
            self.labels, {name: labels_of(split) for name, split in self.every_split.items()}
        )


def build_task(settings: TaskSettings, base_uri: str) -> Task:
    """Read a task's rows and turn them into the inputs of a base.

    Raises DataError as `load_rows` does and for an input that is none, BaseModelError where the
    base has nothing that makes inputs of such rows, and ConfigError for a metric that does not
    measure this kind of task.
    """
    if not settings.suite:
        check_metric(settings.metric, settings.kind)
    rows = load_rows(settings)
    train = _fingerprint(
        {
            "kind": settings.kind,
            "labels": rows.labels,
            "rows": rows["train"].hashes,
            **own_code(kind=settings.kind),
            **kind_of(settings.kind).input_facts(settings, base_uri),
        }
    )
    task = _built(rows, settings, base_uri, train)
    if not settings.suite:
        return task
    notes, suite = list(task.notes), {}
    for index, member in enumerate(member_settings(settings)):
        with member_errors(index):
            made = _member(rows.suite[member.name], member, base_uri, train)
        notes += [of_member(note, index) for note in made.notes if note not in task.notes]
        suite[member.name] = replace(made, notes=())
    members = {name: member.fingerprint for name, member in suite.items()}
    measured = {f"{name}/{k}": v for name, each in suite.items() for k, v in each.rows.items()}
    return replace(
        task,
        fingerprint=_fingerprint({"train": train, "metric": settings.metric, "suite": members}),
        notes=tuple(dict.fromkeys(notes)),
        rows={**task.rows, **measured},
        suite=suite,
    )


def _member(rows: TaskRows, settings: TaskSettings, base_uri: str, train: str) -> Task:
    """A member of the suite of a task whose `train_fingerprint` is `train`."""
    check_metric(settings.metric, settings.kind)
    facts = kind_of(settings.kind).input_facts(settings, base_uri) | own_code(kind=settings.kind)
    of_its_own = _fingerprint({"train": train, "kind": settings.kind, **facts})
    return _built(replace(rows, notes=()), settings, base_uri, of_its_own)


def _built(rows: TaskRows, settings: TaskSettings, base_uri: str, train: str) -> Task:
    """The task of these rows; `train` names what it is trained on, and how."""
    kind, labels = kind_of(settings.kind), rows.labels
    positive = positive_index(labels, settings)
    measured: dict[str, Any] = {
        "metric": settings.metric,
        **own_code(metric=settings.metric),
        "rows": {split: part.hashes for split, part in rows.splits.items() if split != "train"},
    }
    measured |= kind.measuring_facts(settings, base_uri)
    if settings.metric == "f1" and len(labels) == 2 and positive != 1:
        measured["positive_class"] = labels[positive]
    encoded = kind.encode(rows.splits, labels, settings, base_uri)
    return Task(
        name=settings.name,
        kind=settings.kind,
        labels=labels,
        splits=encoded.splits,
        metric=settings.metric,
        train_fingerprint=train,
        fingerprint=_fingerprint({"train": train, **measured}),
        positive=positive,
        notes=(*rows.notes, *encoded.notes),
        example=encoded.example,
        longest=longest_rows(rows.splits, encoded.splits, kind, settings),
        own={
            **({settings.kind: kind} if is_own(settings.kind) else {}),
            **({settings.metric: own_metric(settings.metric)} if is_own(settings.metric) else {}),
        },
        rows={split: _fingerprint({"rows": each.hashes}) for split, each in rows.splits.items()},
    )


def _fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON; content hashes that lie in a file are never all in memory."""
    digest = hashlib.sha256()
    for part in _canonical(content):
        digest.update(part.encode())
    return digest.hexdigest()


def _canonical(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield "{"
        for number, key in enumerate(sorted(value)):
            yield f"{',' if number else ''}{json.dumps(key)}:"
            yield from _canonical(value[key])
        yield "}"
    elif isinstance(value, Stored):
        yield "["
        for number, each in enumerate(value):
            yield f"{',' if number else ''}{json.dumps(each)}"
        yield "]"
    else:
        yield json.dumps(value, sort_keys=True, separators=(",", ":"))
