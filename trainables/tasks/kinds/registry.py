"""The kinds of tasks by name, and the metrics that measure each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from spaces.errors import ConfigError, nearest
from trainables.tasks.kinds.causal import Causal
from trainables.tasks.kinds.classification import Classification, ImageClassification
from trainables.tasks.kinds.generation import Generation
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.multiple_choice import MultipleChoice
from trainables.tasks.kinds.regression import Regression
from trainables.tasks.metrics import METRICS
from trainables.tasks.row_metrics import ROW_METRICS

KINDS: Mapping[str, Kind] = {
    "classification": Classification(),
    "image_classification": ImageClassification(),
    "regression": Regression(),
    "multiple_choice": MultipleChoice(),
    "causal": Causal(),
    "generation": Generation(),
}


def kind_of(name: str) -> Kind:
    """The kind of that name. Raises ConfigError, naming the nearest, where there is none."""
    if name not in KINDS:
        raise ConfigError(f"task.kind: {name!r} is not a kind of task; {nearest(name, KINDS)}")
    return KINDS[name]


def usual_metric(kind: object) -> str:
    """What measures a kind where nothing is said."""
    known = KINDS.get(kind) if isinstance(kind, str) else None
    return "accuracy" if known is None else known.metrics[0]


def metric_of_first(suite: object, kind: object) -> str:
    """What measures the first member of a suite, as it is written, of a task of that kind."""
    first = suite[0] if isinstance(suite, list | tuple) and suite else {}
    given = first if isinstance(first, Mapping) else {}
    metric = given.get("metric")
    return metric if isinstance(metric, str) else usual_metric(given.get("kind") or kind)


def check_metric(name: str, kind: str, key: str = "task.metric") -> None:
    """Raise ConfigError, naming the nearest that does, where a metric does not measure a kind."""
    fitting = kind_of(kind).metrics
    if name not in fitting:
        raise ConfigError(f"{key}: {name!r} does not measure {kind}; {nearest(name, fitting)}")


def mode_of(metric: str) -> Literal["max", "min"] | None:
    """The better direction of a metric; None of one that is not known."""
    known = METRICS.get(metric) or ROW_METRICS.get(metric)
    return None if known is None else known.mode
