"""A kind of task has all that the loops and the settings ask of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from trainables.bases.parts import auto_class
from trainables.tasks.kinds import KINDS, metric_for


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_a_head_and_metrics_that_measure_it(name: str) -> None:
    assert auto_class(name).__name__.startswith("AutoModelFor")
    assert KINDS[name].metrics
    for metric in KINDS[name].metrics:
        assert metric_for(metric, name).name == metric


@pytest.mark.parametrize("name", KINDS)
def test_a_split_is_measured_by_its_mean_cross_entropy_and_its_metric(name: str) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(9, 3)), generator.integers(0, 3, 9)
    entropy = -log_softmax(logits, axis=1)[np.arange(9), labels].mean()
    loss, value = KINDS[name].measure("accuracy", torch.tensor(logits), labels)
    assert loss == pytest.approx(entropy, rel=1e-12)
    assert value == pytest.approx((logits.argmax(1) == labels).mean())
    halves = [slice(0, 4), slice(4, 9)]
    summed = sum(
        float(KINDS[name].summed_loss(torch.tensor(logits[half]), torch.tensor(labels[half])))
        for half in halves
    )
    count = sum(KINDS[name].loss_count(labels[half]) for half in halves)
    assert summed / count == pytest.approx(loss, rel=1e-12)
