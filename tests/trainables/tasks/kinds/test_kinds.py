"""A kind of task has all that the loops and the settings ask of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from spaces.errors import ConfigError
from trainables.bases.parts import auto_class
from trainables.tasks.kinds.registry import KINDS, check_metric, kind_of, mode_of, usual_metric


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_head_and_metrics_that_measure_it(name: str) -> None:
    assert auto_class(KINDS[name].head).__name__.startswith("AutoModelFor")
    assert usual_metric(name) == KINDS[name].metrics[0]
    for metric in KINDS[name].metrics:
        check_metric(metric, name)
        assert mode_of(metric) in ("max", "min")


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^task.kind: 'regresion' .*'regression'\?$"):
        kind_of("regresion")


@pytest.mark.parametrize("name", ["classification", "image_classification"])
def test_the_loss_of_classes_is_their_cross_entropy(name: str) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(9, 3)), generator.integers(0, 3, 9)
    entropy = -log_softmax(logits, axis=1)[np.arange(9), labels].sum()
    halves = [slice(0, 4), slice(4, 9)]
    summed = sum(
        float(KINDS[name].summed_loss(torch.tensor(logits[half]), torch.tensor(labels[half])))
        for half in halves
    )
    assert summed == pytest.approx(entropy, rel=1e-12)


def test_the_loss_of_a_regression_is_the_squared_error() -> None:
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(9, 1)), generator.normal(size=9)
    loss = KINDS["regression"].summed_loss(torch.tensor(outputs), torch.tensor(labels))
    assert float(loss) == pytest.approx(((outputs[:, 0] - labels) ** 2).sum(), rel=1e-12)
