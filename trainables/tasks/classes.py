"""The classes of a task: their order, what must hold of them, what a user should know of them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation

import numpy as np
from numpy.typing import NDArray

from spaces.errors import ConfigError, DataError, shown
from trainables.tasks.kinds.kind import ReadRows
from trainables.tasks.metrics import METRICS
from trainables.tasks.records import Records
from trainables.tasks.settings import TaskSettings
from trainables.tasks.values import INVISIBLE, is_a_number, kinds_of, strings_of

Labels = Mapping[str, Sequence[str]]
"""Split -> the label of each of its rows."""
MOST_NAMES = 10  # classes that a message names
MANY = 20  # classes beyond which it is odd that most have one row
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,999})")  # int() takes no more than 4300


def labelled(read: ReadRows, records: Records, column: str, place: str) -> ReadRows:
    """The rows with the class of each, as it is written in `column`."""
    read.labels, wrong = strings_of(records, column, "class")
    read.faults += [f"task.label: {place} has {fault}" for fault in wrong]
    kinds = kinds_of(records.columns[column])
    if len(kinds) > 1:
        read.notes.append(
            f"task.label: {place} has {' and '.join(kinds)} in {column!r}; a class is its "
            'written form, so 1 and "1" are one'
        )
    return read


def label_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes in order: numerically where all are integers, else by code point."""
    names = set(labels)
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def counted(
    labels: Sequence[str], of_rows: Mapping[str, NDArray[np.int64]]
) -> dict[str, dict[str, int]]:
    """Class -> split -> how many rows; `of_rows` holds each row's index into `labels`."""
    counts = {split: np.bincount(rows, minlength=len(labels)) for split, rows in of_rows.items()}
    return {
        label: {split: int(count[i]) for split, count in counts.items()}
        for i, label in enumerate(labels)
    }


def check_classes(splits: Labels, task: TaskSettings) -> None:
    """Raise DataError where train has one class, or another split a class that train lacks.

    And where the metric is undefined on dev or test, whatever a model predicts.
    """
    known = label_names(splits["train"])
    if len(known) < 2:
        raise DataError(
            f"task.label: every row of train is {shown(repr(known[0]))}; a classification needs "
            "two classes"
        )
    for split, labels in splits.items():
        missing = set(labels) - set(known)
        if missing:
            unknown = sorted(missing)
            rows = sum(label in missing for label in labels)
            raise DataError(
                f"task.label: {split} has the label{'s' * (len(unknown) > 1)} {_names(unknown)} "
                f"in {rows:,} of {len(labels):,} rows, which no row of train has "
                f"({_names(known)}){_reason(unknown, known)}; correct it or give train such rows"
            )
        metric = METRICS.get(task.metric)
        if split != "train" and metric and metric.needs_two_classes and len(set(labels)) < 2:
            raise DataError(
                f"task.metric: every row of {split} is {shown(repr(labels[0]))}, so {task.metric} "
                "is not defined on it; give it rows of another class, or use accuracy"
            )


def positive_index(labels: Sequence[str], task: TaskSettings) -> int:
    """The place of the class that f1 counts as positive: the second of two unless the task says.

    Raises ConfigError where `task.positive_class` names no class, or there are more than two.
    """
    if task.positive_class is None:
        return 1
    if len(labels) > 2:
        raise ConfigError(
            f"task.positive_class: goes with two classes, and the task has {len(labels)} "
            f"({_names(labels)}); drop it: f1 is then the mean over the classes"
        )
    if task.positive_class not in labels:
        quoted = ""
        if task.positive_class in ("True", "False"):
            quoted = "; put yes, no, on and off into quotes, for YAML reads them as booleans"
        raise ConfigError(
            f"task.positive_class: {shown(repr(task.positive_class))} is no class of the task; "
            f"use {' or '.join(shown(repr(label)) for label in labels)}{quoted}"
        )
    return list(labels).index(task.positive_class)


def class_notes(splits: Labels, task: TaskSettings) -> Iterator[str]:
    """What of the classes a user should know before a launch, a line each."""
    labels = label_names(splits["train"])
    for alike in near_doubles(labels):
        same = len({unicodedata.normalize("NFC", label) for label in alike}) == 1
        named = ", ".join(map(ascii, alike)) if same else _names(alike)
        yield (
            f"task.label: {named} are {len(alike)} classes that differ only in case, "
            "spaces or how they are written; correct the data if they are one"
        )
    counts = Counter(splits["train"])
    single = sum(count == 1 for count in counts.values())
    if len(labels) > MANY and 2 * single > len(labels):
        yield (
            f"task.label: {single:,} of {len(labels):,} classes have one row of train; see that "
            f"{task.label!r} is the column of classes"
        )
    for split in ("dev", "test"):
        if split in splits:
            yield from _measured_notes(split, splits[split], labels, task)


def _measured_notes(
    split: str, present: Sequence[str], labels: Sequence[str], task: TaskSettings
) -> Iterator[str]:
    """What a metric cannot say on a split for want of some class."""
    metric, have = task.metric, set(present)
    lacking = [label for label in labels if label not in have]
    if not lacking:
        return
    consequence = f"{metric} says nothing of {'it' if len(lacking) == 1 else 'them'}"
    if metric == "f1" and len(labels) == 2:
        positive = labels[positive_index(labels, task)]
        if positive in lacking:
            consequence = "f1 is 0 whatever is predicted, for that is its positive class"
    elif metric == "matthews" and len(have) < 2:
        consequence = "matthews is 0 whatever is predicted"
    elif metric in METRICS and METRICS[metric].over_classes:
        consequence = (
            f"{metric} is the mean over the classes that occur, and {consequence.split(' ', 1)[1]}"
        )
    yield f"task.metric: {split} has no row of {_names(lacking)}, which train has; {consequence}"


def positive_note(labels: Sequence[str], task: TaskSettings) -> Iterator[str]:
    """Which class f1 counts as the positive one, where it counts one."""
    if task.metric == "f1" and len(labels) == 2:
        positive = shown(repr(labels[positive_index(labels, task)]))
        yield f"task.positive_class: f1 counts {positive} as the positive class"


def near_doubles(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Classes that differ only in case, spaces, Unicode's forms, or as numbers are written."""
    groups: dict[str | Decimal, list[str]] = {}
    for label in sorted(labels):
        groups.setdefault(_plain(label), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _plain(label: str) -> str | Decimal:
    """What near-doubles have in common."""
    plain = INVISIBLE.sub("", unicodedata.normalize("NFKC", label)).casefold()
    try:
        return Decimal(plain) if is_a_number(plain) else plain
    except InvalidOperation:  # an exponent that no number has
        return plain


def _reason(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Why a split may have labels that train lacks, as far as it shows."""
    of_train = {_plain(label): label for label in known}
    for label in unknown:
        if (twin := of_train.get(_plain(label))) is not None:
            return f": {shown(repr(label))} is {shown(repr(twin))} written otherwise"
    return ": -1 marks rows whose label is kept back" if list(unknown) == ["-1"] else ""


def _names(labels: Sequence[str]) -> str:
    named = ", ".join(shown(repr(label), 40) for label in labels[:MOST_NAMES])
    return named + (f" and {len(labels) - MOST_NAMES:,} more" if len(labels) > MOST_NAMES else "")
