from __future__ import annotations

from math import log2, log10
from typing import Any

import numpy as np
import pytest

from spaces.features import FEATURES, SPREADS, plan_features
from spaces.planner import Planner
from tests.spaces.example_profiles import SIZE, SMALL, drawn_profile

CHOICES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "alpha": 7.0},
    "pilora": {"rank": 4, "supplementary_rank": 2},
    "taso": {"retention": 0.3, "rounds": 2, "rank": 2},
    "sensitivity": {"mean_rank": 3},
    "joint": {"mean_rank": 2, "retention": 0.4},
}
RATE = 3e-3


def plan_and_features(method: str) -> tuple[Any, dict[str, float]]:
    profile = drawn_profile()
    planner = Planner(SMALL, profile, SIZE)
    plan = planner.plan({"method": method, "learning_rate": RATE, **CHOICES.get(method, {})})
    return plan, plan_features(plan, RATE, profile)


@pytest.mark.parametrize("method", CHOICES)
def test_the_first_update_is_as_large_as_adams_first_step_makes_it(method: str) -> None:
    plan, features = plan_and_features(method)
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(15):
        square = 0.0
        for stage in plan.stages:
            for name, blocks in stage.items():
                width = next(t.shape[1] for t in plan.targets if t.name == name)
                for block in blocks:
                    A = rng.uniform(-1, 1, (block.rank, len(block.cols))) / np.sqrt(width)
                    signs = rng.choice((-1.0, 1.0), (len(block.rows), block.rank))
                    step = RATE * block.lr_scale * signs
                    square += float(np.sum((block.scale * step @ A) ** 2))
        squares.append(square)
    assert 10 ** features["log10_first_update"] == pytest.approx(np.sqrt(np.mean(squares)), rel=0.1)


@pytest.mark.parametrize("method", CHOICES)
def test_shapes_are_means_over_the_modules_that_have_blocks(method: str) -> None:
    plan, features = plan_and_features(method)
    ranks, rows, cols, params = [], [], [], 0
    for target in plan.targets:
        blocks = [block for stage in plan.stages for block in stage.get(target.name, ())]
        params += sum(b.rank * (len(b.rows) + len(b.cols)) for b in blocks)
        if blocks:
            largest = max(blocks, key=lambda b: b.rank)
            ranks.append(largest.rank)
            rows.append(len(largest.rows) / target.shape[0])
            cols.append(max(len(b.cols) for b in blocks) / target.shape[1])
    assert features["log10_params"] == pytest.approx(log10(params))
    assert features["log10_learning_rate"] == pytest.approx(log10(RATE))
    assert features["log2_mean_rank"] == pytest.approx(log2(np.mean(ranks)))
    assert features["rank_spread"] == pytest.approx(np.std(np.log2(ranks)))
    assert features["dominant_rows"] == pytest.approx(np.mean(rows))
    assert features["columns_read"] == pytest.approx(np.mean(cols))
    assert features["log2_stages"] == log2(len(plan.stages))
    assert set(features) == set(FEATURES) == set(SPREADS)


def test_a_tuner_has_its_parameters_and_its_learning_rate() -> None:
    plan, features = plan_and_features("bitfit")
    assert features == {
        "log10_params": pytest.approx(log10(plan.trainable_params)),
        "log10_learning_rate": pytest.approx(log10(RATE)),
    }
