"""Metrics agree with their definitions, counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from spaces.errors import ConfigError
from trainables.tasks.kinds import metric_for
from trainables.tasks.metrics import METRICS

Ints = NDArray[np.int64]


def logits_of(predictions: Ints, classes: int) -> NDArray[np.float32]:
    """Logits whose largest entry is the predicted class."""
    noise = np.random.default_rng(0).uniform(-1, 0, (len(predictions), classes))
    noise[np.arange(len(predictions)), predictions] = 0.5
    return noise.astype(np.float32)


def f1_of(labels: Ints, predictions: Ints, positive: int) -> float:
    hits = sum(a == b == positive for a, b in zip(labels, predictions, strict=True))
    total = int(np.sum(labels == positive) + np.sum(predictions == positive))
    return 2 * hits / total if total else 0.0


def matthews_of(labels: Ints, predictions: Ints) -> float:
    """The two-class coefficient from the four counts."""
    tp = float(np.sum((labels == 1) & (predictions == 1)))
    tn = float(np.sum((labels == 0) & (predictions == 0)))
    fp = float(np.sum((labels == 0) & (predictions == 1)))
    fn = float(np.sum((labels == 1) & (predictions == 0)))
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / root if root else 0.0


ORACLES: dict[str, Callable[[Ints, Ints], float]] = {
    "accuracy": lambda labels, predictions: float(np.mean(labels == predictions)),
    "f1": lambda labels, predictions: f1_of(labels, predictions, 1),
    "macro_f1": lambda labels, predictions: (
        (f1_of(labels, predictions, 0) + f1_of(labels, predictions, 1)) / 2
    ),
    "matthews": matthews_of,
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(5))
def test_a_metric_of_two_classes_is_its_definition(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 2, (2, 37))
    measured = metric_for(name, "classification")(labels, logits_of(predictions, 2))
    assert measured == pytest.approx(ORACLES[name](labels, predictions), abs=1e-12)


@pytest.mark.parametrize("name", ["f1", "macro_f1"])
def test_f1_of_many_classes_is_the_mean_over_every_class_of_the_task(name: str) -> None:
    labels, predictions = np.random.default_rng(3).integers(0, 4, (2, 50))
    expected = np.mean([f1_of(labels, predictions, c) for c in range(5)])
    measured = METRICS[name](labels, logits_of(predictions, 5))  # the fifth class never occurs
    assert measured == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_one_predicted_class_gives_a_number_without_a_warning(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    labels = np.array([0, 1, 0, 1])
    measured = METRICS[name](labels, logits_of(np.zeros(4, dtype=np.int64), 2))
    oracle = ORACLES[name](labels, np.zeros(4, dtype=np.int64))
    assert measured == pytest.approx(oracle)
    assert [str(w.message) for w in recwarn] == []


def test_an_unknown_metric_names_the_nearest_and_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^search.metric: 'acuracy' .*'accuracy'\?$"):
        metric_for("acuracy", "classification", key="search.metric")
    with pytest.raises(ConfigError, match=r"^task\.metric: "):
        metric_for("accuracy", "generation")
