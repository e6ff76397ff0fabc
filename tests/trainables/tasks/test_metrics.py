"""Metrics agree with their definitions, counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from spaces.errors import ConfigError
from trainables.tasks.kinds.registry import check_metric
from trainables.tasks.metrics import METRICS

Ints = NDArray[np.int64]


def logits_of(predictions: Ints, classes: int) -> NDArray[np.float32]:
    """Logits whose largest entry is the predicted class, alike for rows predicted alike."""
    noise = np.random.default_rng(0).uniform(-1, 0, (classes, classes))
    np.fill_diagonal(noise, 0.5)
    if classes == 2:  # a row is a positive one by as much as it is predicted to be
        noise = np.array([[0.5, 0.0], [0.0, 0.5]])
    return noise[predictions].astype(np.float32)


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


def auc_of(positive: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Share of the pairs of a positive and another row that are in order; half of those equal."""
    pairs = [(a, b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))


ORACLES: dict[str, Callable[[Ints, Ints], float]] = {
    "accuracy": lambda labels, predictions: float(np.mean(labels == predictions)),
    "f1": lambda labels, predictions: f1_of(labels, predictions, 1),
    "macro_f1": lambda labels, predictions: (
        (f1_of(labels, predictions, 0) + f1_of(labels, predictions, 1)) / 2
    ),
    "matthews": matthews_of,
    "roc_auc": lambda labels, predictions: auc_of(labels == 1, predictions),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("seed", range(5))
def test_a_metric_of_two_classes_is_its_definition(name: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 2, (2, 37))
    measured = METRICS[name](labels, logits_of(predictions, 2))
    assert measured == pytest.approx(ORACLES[name](labels, predictions), abs=1e-12)


@pytest.mark.parametrize("positive", [0, 1])
def test_f1_is_of_the_class_that_is_named_positive(positive: int) -> None:
    labels, predictions = np.random.default_rng(1).integers(0, 2, (2, 37))
    measured = METRICS["f1"](labels, logits_of(predictions, 2), positive)
    assert measured == pytest.approx(f1_of(labels, predictions, positive), abs=1e-12)


@pytest.mark.parametrize("name", ["f1", "macro_f1"])
@pytest.mark.parametrize("predicted", [4, 5])
def test_f1_of_many_classes_is_the_mean_over_those_that_rows_have_or_are_given(
    name: str, predicted: int
) -> None:
    generator = np.random.default_rng(3)
    labels, predictions = generator.integers(0, 4, 50), generator.integers(0, predicted, 50)
    expected = np.mean([f1_of(labels, predictions, c) for c in range(predicted)])
    measured = METRICS[name](labels, logits_of(predictions, 6))  # the sixth class never occurs
    assert measured == pytest.approx(expected, abs=1e-12)
    assert METRICS[name](labels, logits_of(labels, 6)) == 1.0


def test_roc_auc_is_the_mean_over_the_classes_that_occur_of_each_against_the_rest() -> None:
    generator = np.random.default_rng(4)
    labels, logits = generator.integers(0, 4, 60), generator.normal(size=(60, 5)) * 3
    scores = softmax(logits, axis=1)
    expected = np.mean([auc_of(labels == c, scores[:, c]) for c in range(4)])
    assert METRICS["roc_auc"](labels, logits) == pytest.approx(expected, abs=1e-12)
    peer = roc_auc_score(labels, softmax(logits[:, :4], axis=1), multi_class="ovr", average="macro")
    assert METRICS["roc_auc"](labels, logits[:, :4]) == pytest.approx(peer, abs=1e-12)


def test_roc_auc_tells_rows_apart_that_are_all_but_certain() -> None:
    logits = np.array([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0]])  # probabilities that round to 1
    assert METRICS["roc_auc"](np.array([0, 1, 1]), logits) == 1.0
    assert METRICS["roc_auc"](np.array([1, 0, 0]), logits) == 0.0


def test_roc_auc_of_logits_that_are_no_numbers_is_no_number() -> None:
    logits = np.array([[0.0, np.nan], [0.0, 1.0]])
    assert math.isnan(METRICS["roc_auc"](np.array([0, 1]), logits))


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
        check_metric("acuracy", "classification", key="search.metric")
    with pytest.raises(ConfigError, match=r"^task\.metric: 'accuracy' does not measure regression"):
        check_metric("accuracy", "regression")
