"""The kinds of tasks by name, and the metrics that measure each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from spaces.errors import ConfigError, nearest, one_line
from trainables.tasks.kinds.causal import Causal
from trainables.tasks.kinds.classification import Classification, ImageClassification
from trainables.tasks.kinds.generation import Generation
from trainables.tasks.kinds.kind import Kind
from trainables.tasks.kinds.multiple_choice import MultipleChoice
from trainables.tasks.kinds.regression import Regression
from trainables.tasks.metrics import METRICS
from trainables.tasks.own import is_own, own_object
from trainables.tasks.row_metrics import ROW_METRICS

OwnMetric = Callable[[Sequence[Any], Sequence[Any]], float | Sequence[float]]
"""A user's metric: of the answers of a split and what is right, the value, or that of each row."""
KINDS: Mapping[str, Kind] = {
    "classification": Classification(),
    "image_classification": ImageClassification(),
    "regression": Regression(),
    "multiple_choice": MultipleChoice(),
    "causal": Causal(),
    "generation": Generation(),
}


def kind_of(name: str) -> Kind:
    """The kind of that name, or of that import path.

    Raises ConfigError where there is none.
    """
    if is_own(name):
        return _own_kind(name)
    if name not in KINDS:
        raise ConfigError(f"task.kind: {name!r} is not a kind of task; {nearest(name, KINDS)}")
    return KINDS[name]


def usual_metric(kind: object) -> str:
    """What measures a kind where nothing is said."""
    if not isinstance(kind, str) or not (kind in KINDS or is_own(kind)):
        return "accuracy"
    return kind_of(kind).metrics[0]


@cache
def _own_kind(path: str) -> Kind:
    found = own_object(path, "task.kind")
    try:
        made = found() if isinstance(found, type) else found
    except TypeError as error:  # a method that it must have is missing
        raise ConfigError(f"task.kind: {path} cannot be made ({one_line(error)})") from error
    if not isinstance(made, Kind):
        raise ConfigError(
            f"task.kind: {path} is no kind of task; make it a subclass of one, such as "
            "trainables.tasks.kinds.classification.Classification"
        )
    return made


def own_metric(path: str, key: str = "task.metric") -> OwnMetric:
    """The user's function of that import path. Raises ConfigError where there is none."""
    found = own_object(path, key)
    if not callable(found):
        raise ConfigError(f"{key}: {path} is no function; write one of (answers, references)")
    try:
        inspect.signature(found).bind((), ())
    except TypeError as error:
        raise ConfigError(
            f"{key}: {path} does not take (answers, references) ({error}); give it these two"
        ) from error
    except ValueError:  # of what is written in C nothing is known
        pass
    made: OwnMetric = found
    return made


def metric_of_first(suite: object, kind: object) -> str:
    """What measures the first member of a suite, as it is written, of a task of that kind."""
    first = suite[0] if isinstance(suite, list | tuple) and suite else {}
    given = first if isinstance(first, Mapping) else {}
    metric = given.get("metric")
    return metric if isinstance(metric, str) else usual_metric(given.get("kind") or kind)


def check_metric(name: str, kind: str, key: str = "task.metric") -> None:
    """Raise ConfigError, naming the nearest that does, where a metric does not measure a kind."""
    of = kind_of(kind)
    fitting = of.metrics
    if is_own(name):
        if not of.has_answers:
            raise ConfigError(
                f"{key}: {name!r} judges answers, and {kind} has none; use {' or '.join(fitting)}"
            )
        own_metric(name, key)
    elif name not in fitting:
        raise ConfigError(f"{key}: {name!r} does not measure {kind}; {nearest(name, fitting)}")


def mode_of(metric: str) -> Literal["max", "min"] | None:
    """The better direction of a metric; None of one that is not known."""
    if is_own(metric):
        return "min" if getattr(own_metric(metric), "mode", "max") == "min" else "max"
    known = METRICS.get(metric) or ROW_METRICS.get(metric)
    return None if known is None else known.mode
