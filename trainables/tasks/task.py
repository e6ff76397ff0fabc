"""A task made ready for a base: its splits as the base's inputs, and what names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainables.bases.heads import Classes
from trainables.tasks.care import LongRow, longest_rows
from trainables.tasks.classes import counted, positive_index
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.registry import check_metric, kind_of, own_metric
from trainables.tasks.own import is_own
from trainables.tasks.rows import load_rows
from trainables.tasks.settings import TaskSettings
from trainables.tasks.split import Split, labels_of


@dataclass(frozen=True)
class Task:
    """A task made ready for one base: its splits as the base's inputs, and what names it.

    `train_fingerprint` covers the training rows and how they become inputs, which is all that a
    profile depends on; `fingerprint` adds dev, test and the metric. `labels` are the task's
    classes, none where it has no classes; `positive` is the index of the one that f1 counts as
    positive, of two. `notes` is what a user should know before a launch. `rows` has, of each split,
    what names its rows alone. `example` is a row as the base reads it (`EncodedRows`), and
    `longest` are the longest rows.
    `own` has what the user's own import paths name, for the workers, which need not find them.
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

    @property
    def data_fingerprint(self) -> str:
        """`fingerprint` but for the metric's name: equal where measured on the same data."""
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
        return counted(self.labels, {name: labels_of(split) for name, split in self.splits.items()})


def build_task(settings: TaskSettings, base_uri: str) -> Task:
    """Read a task's rows and turn them into the inputs of a base.

    Raises DataError as `load_rows` does and for an input that is none, BaseModelError where the
    base has nothing that makes inputs of such rows, and ConfigError for a metric that does not
    measure this kind of task.
    """
    check_metric(settings.metric, settings.kind)
    rows = load_rows(settings)
    labels = rows.labels
    positive = positive_index(labels, settings)
    kind = kind_of(settings.kind)
    train = _fingerprint(
        {
            "kind": settings.kind,
            "labels": labels,
            "rows": rows["train"].hashes,
            **kind.input_facts(settings, base_uri),
        }
    )
    measured: dict[str, Any] = {
        "metric": settings.metric,
        "rows": {split: part.hashes for split, part in rows.splits.items() if split != "train"},
    }
    measured |= kind.measuring_facts(settings)
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
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
