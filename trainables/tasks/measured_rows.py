"""What a model says of every row of a split, kept so that two models can be compared row by row.

One safetensors file. Of a task of classes: `labels` int32 [n] and `predictions` int32 [n], indices
of classes; for a metric that is made of more than the predicted class also `logits` float32 [n,
classes]. Of any other: `statistics` float64 [n, k] of its metric (trainables/tasks/row_metrics.py),
and among the facts `answers`, what is answered for each row, and `right`, where that is one thing.
Of a suite the tensors of each member, as `<member>/labels` and so on. The facts below are JSON
under the metadata key `ranksweep`. Neither torch nor scikit-learn is needed to read one.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from spaces.errors import UsageError
from spaces.files import tensor_file
from trainables.tasks.metrics import METRICS
from trainables.tasks.own import is_own
from trainables.tasks.row_metrics import MEAN, ROW_METRICS, RowMetric, Statistics

SCHEMA_VERSION = 1
_METADATA_KEY = "ranksweep"
RESAMPLES, FEW_RESAMPLES = 1000, 200

Indices = NDArray[np.int32]
Floats = NDArray[np.float64]
Answer = str | int | float
"""A class, the index of an option, a number, or what is written."""


@dataclass(frozen=True, eq=False)
class MeasuredRows(ABC):
    """The rows of a split as one model sees them.

    `rows` names the rows and their order (the task's fingerprint).
    """

    metric: str
    rows: str

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @property
    @abstractmethod
    def takes_long(self) -> bool:
        """Whether the metric is computed anew for every choice of rows."""

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The tensors of the file."""

    def facts(self) -> dict[str, Any]:
        """What else is in the file."""
        return {"metric": self.metric, "rows": self.rows}

    @abstractmethod
    def is_of(self, other: MeasuredRows) -> bool:
        """Whether both are of the same rows, in the same order, measured alike."""

    @abstractmethod
    def on(self, drawn: Floats) -> Floats:
        """The metric on each resample; `drawn` [resamples, n] says how often it holds each row.

        NaN where it is not defined, as for a resample of one class alone.
        """

    def draw(self, generator: np.random.Generator, count: int) -> Floats:
        """So many resamples [count, n] of as many rows as there are."""
        rows = len(self)
        return np.stack(
            [np.bincount(generator.integers(0, rows, rows), minlength=rows) for _ in range(count)]
        ).astype(np.float64)

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        from safetensors.numpy import save

        facts = {"schema_version": SCHEMA_VERSION, **self.facts()}
        metadata = {_METADATA_KEY: json.dumps(facts, sort_keys=True)}
        data: bytes = save(self.tensors(), metadata=metadata)
        return data

    @property
    def resamples(self) -> int:
        """How many resamples are wanted: fewer of a metric that takes long, or of many rows."""
        if self.takes_long:
            return FEW_RESAMPLES
        return int(np.clip(20_000_000 // max(len(self), 1), FEW_RESAMPLES, RESAMPLES))


@dataclass(frozen=True, eq=False)
class RowStatistics(MeasuredRows):
    """Rows by the statistics [n, k] that their metric is made of.

    `answers` are what the model answers for each row, and `right` what is right; None where that is
    not known, or of more than one answer that is.
    """

    statistics: Statistics
    answers: tuple[Answer, ...] | None = None
    right: tuple[Answer, ...] | None = None

    def __len__(self) -> int:
        return len(self.statistics)

    @property
    def takes_long(self) -> bool:
        known = self._metric
        return known is None or known.of_sums is None

    @property
    def _metric(self) -> RowMetric | None:
        """What makes the metric; of a metric of the user's own the rows have each its value."""
        return ROW_METRICS.get(MEAN if is_own(self.metric) else self.metric)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {"statistics": self.statistics}

    def facts(self) -> dict[str, Any]:
        told = {"answers": self.answers, "right": self.right}
        return {**super().facts(), **{key: each for key, each in told.items() if each is not None}}

    def is_of(self, other: MeasuredRows) -> bool:
        return (
            isinstance(other, RowStatistics)
            and (self.metric, self.rows) == (other.metric, other.rows)
            and self.statistics.shape == other.statistics.shape
        )

    def on(self, drawn: Floats) -> Floats:
        known = self._metric
        if known is None:  # another version's metric
            return np.full(len(drawn), np.nan)
        if known.of_sums is not None:
            return np.asarray(known.of_sums(drawn @ self.statistics))
        every = np.arange(len(self))
        rows = (np.repeat(every, times.astype(int)) for times in drawn)
        return np.array([known.of(self.statistics[some]) for some in rows])


@dataclass(frozen=True, eq=False)
class ClassRows(MeasuredRows):
    """Rows of a task of classes. `classes` counts those, `positive` is the one that `f1` of two is
    of."""

    classes: int
    labels: Indices
    predictions: Indices
    logits: NDArray[np.float32] | None = None
    positive: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def takes_long(self) -> bool:
        return not is_of_predictions(self.metric)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        tensors: dict[str, NDArray[np.generic]] = {
            "labels": self.labels,
            "predictions": self.predictions,
        }
        return tensors if self.logits is None else tensors | {"logits": self.logits}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "classes": self.classes, "positive": self.positive}

    def is_of(self, other: MeasuredRows) -> bool:
        return (
            isinstance(other, ClassRows)
            and self.facts() == other.facts()
            and np.array_equal(self.labels, other.labels)
        )

    def on(self, drawn: Floats) -> Floats:
        right = self.labels == self.predictions
        if self.metric == "accuracy":
            return np.asarray(drawn @ right / drawn.sum(axis=1))
        if self.metric in OF_COUNTS:
            counts = Counts(
                hits=_counted(self.labels, self.classes, drawn, right),
                true=_counted(self.labels, self.classes, drawn),
                predicted=_counted(self.predictions, self.classes, drawn),
            )
            return OF_COUNTS[self.metric](counts, self.positive)
        every = np.arange(len(self.labels))
        return np.array([self._computed(np.repeat(every, times.astype(int))) for times in drawn])

    def _computed(self, rows: NDArray[np.integer]) -> float:
        if self.logits is None:
            return float("nan")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a resample may lack a class
                labels = self.labels[rows].astype(np.int64)
                return METRICS[self.metric](labels, self.logits[rows], self.positive)
        except (KeyError, ValueError):  # another version's metric; not defined on these rows
            return float("nan")


@dataclass(frozen=True, eq=False)
class SuiteRows(MeasuredRows):
    """The rows of each member of a suite, side by side; the metric is the mean of theirs."""

    members: Mapping[str, MeasuredRows]

    def __len__(self) -> int:
        return sum(map(len, self.members.values()))

    @property
    def takes_long(self) -> bool:
        return any(each.takes_long for each in self.members.values())

    @property
    def values(self) -> dict[str, float]:
        """ "<member>/<metric>" of all its rows."""
        return {
            f"{name}/{each.metric}": float(each.on(np.ones((1, len(each))))[0])
            for name, each in self.members.items()
        }

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        return {
            f"{name}/{key}": tensor
            for name, each in self.members.items()
            for key, tensor in each.tensors().items()
        }

    def facts(self) -> dict[str, Any]:
        own = [{"member": name, **each.facts()} for name, each in self.members.items()]
        return {**super().facts(), "suite": own}

    def is_of(self, other: MeasuredRows) -> bool:
        return (
            isinstance(other, SuiteRows)
            and (self.metric, self.rows) == (other.metric, other.rows)
            and list(self.members) == list(other.members)
            and all(each.is_of(other.members[name]) for name, each in self.members.items())
        )

    def on(self, drawn: Floats) -> Floats:
        ends = np.cumsum([len(each) for each in self.members.values()])[:-1]
        parts = zip(self.members.values(), np.split(drawn, ends, axis=1), strict=True)
        return np.asarray(np.mean([each.on(part) for each, part in parts], axis=0))

    def draw(self, generator: np.random.Generator, count: int) -> Floats:
        """Resamples that have as many rows of each member as there are."""
        return np.concatenate([m.draw(generator, count) for m in self.members.values()], axis=1)


def class_rows(
    metric: str,
    rows: str,
    labels: NDArray[np.int64],
    logits: NDArray[np.floating],
    positive: int = 1,
) -> ClassRows:
    """Those of logits [n, classes]; `positive` is the positive class of two."""
    return ClassRows(
        metric=metric,
        rows=rows,
        classes=logits.shape[-1],
        labels=labels.astype(np.int32),
        predictions=logits.argmax(axis=-1).astype(np.int32),
        positive=positive,
        logits=None if is_of_predictions(metric) else logits.astype(np.float32),
    )


def read_measured_rows(data: bytes, source: str = "rows") -> MeasuredRows:
    """Parse such a file; `source` names it in errors. Raises UsageError."""
    from safetensors.numpy import load

    try:
        tensors = load(data)
        facts = json.loads(tensor_file.parsed(data).metadata[_METADATA_KEY])
        if facts.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema version")
        return _parsed(facts, tensors)
    except Exception as error:  # whatever a file that is none makes its parsers raise
        reason = str(error).replace("\n", " ") or type(error).__name__
        raise UsageError(
            f"{source}: not the rows of a measured split ({reason}); take it from its MLflow run"
        ) from error


def _parsed(facts: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> MeasuredRows:
    if "suite" in facts:
        members = {
            each["member"]: _parsed(each, _of_member(each["member"], tensors))
            for each in facts["suite"]
        }
        return SuiteRows(facts["metric"], facts["rows"], members)
    if "statistics" in tensors:
        told = {key: tuple(facts[key]) for key in ("answers", "right") if key in facts}
        return RowStatistics(facts["metric"], facts["rows"], tensors["statistics"], **told)
    return ClassRows(
        labels=tensors["labels"],
        predictions=tensors["predictions"],
        logits=tensors.get("logits"),
        **{key: facts[key] for key in ("metric", "rows", "classes", "positive")},
    )


def _of_member(name: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    start = f"{name}/"
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


# -- the metrics that are made of counts -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Counts:
    """Rows of every class, float64 [resamples, classes]: predicted rightly, true, and predicted."""

    hits: Floats
    true: Floats
    predicted: Floats


def _counted(
    class_of: Indices, classes: int, drawn: Floats, counted: NDArray[np.bool_] | None = None
) -> Floats:
    """How many rows of each class each resample holds, of those that are `counted`."""
    ones = np.ones(len(class_of)) if counted is None else counted.astype(float)
    is_of = csr_array((ones, (np.arange(len(class_of)), class_of)), (len(class_of), classes))
    return np.asarray(drawn @ is_of)


def _macro_f1(counts: Counts, positive: int) -> Floats:
    """The mean over the classes that occur, true or predicted."""
    occurs = counts.true + counts.predicted
    f1: Floats = 2 * counts.hits / np.maximum(occurs, 1)
    return np.asarray(f1.sum(axis=1) / (occurs > 0).sum(axis=1))


def _f1(counts: Counts, positive: int) -> Floats:
    if counts.true.shape[1] > 2:
        return _macro_f1(counts, positive)
    occurs = (counts.true + counts.predicted)[:, positive]
    return 2 * counts.hits[:, positive] / np.maximum(occurs, 1)


def _matthews(counts: Counts, positive: int) -> Floats:
    """Gorodkin's R_K, as scikit-learn has it; 0 where rows or predictions are of one class."""
    rows, hits = counts.true.sum(axis=1), counts.hits.sum(axis=1)
    together = (counts.true * counts.predicted).sum(axis=1)
    spread = (rows**2 - (counts.true**2).sum(axis=1)) * (
        rows**2 - (counts.predicted**2).sum(axis=1)
    )
    return np.where(spread > 0, (hits * rows - together) / np.sqrt(np.maximum(spread, 1)), 0.0)


OF_COUNTS: Mapping[str, Callable[[Counts, int], Floats]] = {
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}


def is_of_predictions(metric: str) -> bool:
    """Whether a metric needs no more of a row than its class and the predicted one."""
    return metric == "accuracy" or metric in OF_COUNTS
