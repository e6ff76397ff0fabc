"""What can be said of a plan without naming its method, as numbers a model can learn from."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, log10, sqrt
from types import MappingProxyType

import numpy as np

from spaces.plan import Block, Plan
from spaces.profile import Profile

FEATURES = (
    "log10_params",
    "log10_learning_rate",
    "log10_first_update",
    "log2_mean_rank",
    "rank_spread",
    "dominant_rows",
    "columns_read",
    "log2_stages",
)
"""Their names, in the order in which a model takes them."""

SPREADS: Mapping[str, float] = MappingProxyType(
    {
        "log10_params": 0.6,
        "log10_learning_rate": 0.5,
        "log10_first_update": 0.6,
        "log2_mean_rank": 1.5,
        "rank_spread": 0.5,
        "dominant_rows": 0.35,
        "columns_read": 0.35,
        "log2_stages": 0.6,
    }
)
"""Feature -> its standard deviation, roughly, over the default spaces: the unit of a model."""


def plan_features(
    plan: Plan, learning_rate: float, profile: Profile | None = None
) -> dict[str, float]:
    """Name -> value of every feature that the plan has; a tuner in place of blocks has two.

    `log10_first_update` is the expected Frobenius norm of what Adam's first step adds to the
    weights: it moves every entry of B by the learning rate, and A ~ U(-1/sqrt(in), 1/sqrt(in)) has
    the variance 1/(3 in), so that its square is the sum over blocks of (learning_rate * lr_scale *
    scale)^2 * rows * cols * rank / (3 in). A module's rank is that of its largest block, its
    dominant rows are those that this block writes to, and `rank_spread` is the standard deviation
    over modules of log2 rank.
    """
    found = {
        "log10_params": log10(max(1, plan.trainable_params)),
        "log10_learning_rate": log10(learning_rate),
    }
    if plan.tuner is not None:
        return found
    ranks, dominant, read, square = [], [], [], 0.0
    for target in plan.targets:
        out_features, in_features = target.shape
        blocks = [block for stage in plan.stages for block in stage.get(target.name, ())]
        if not blocks:
            continue
        square += sum(_first_square(block, in_features) for block in blocks)
        largest = max(blocks, key=lambda block: block.rank)
        ranks.append(largest.rank)
        dominant.append(largest.rows.shape[0] / out_features)
        read.append(max(block.cols.shape[0] for block in blocks) / in_features)
    if not ranks:
        return found
    return {
        **found,
        "log10_first_update": log10(learning_rate * sqrt(square)),
        "log2_mean_rank": log2(float(np.mean(ranks))),
        "rank_spread": float(np.std(np.log2(ranks))),
        "dominant_rows": float(np.mean(dominant)),
        "columns_read": float(np.mean(read)),
        "log2_stages": log2(len(plan.stages)),
    }


def has_blocks(features: Mapping[str, float]) -> bool:
    """Whether features are those of a plan of blocks, and not of a tuner in their place."""
    return "log10_first_update" in features


def moved(
    features: Mapping[str, float], log10_rate: float, log10_alpha: float = 0.0
) -> dict[str, float]:
    """The features of the same plan with its learning rate and its alpha multiplied, by powers of
    ten: that the first update is proportional to both is all that they change."""
    found = dict(features)
    found["log10_learning_rate"] += log10_rate
    if has_blocks(found):
        found["log10_first_update"] += log10_rate + log10_alpha
    return found


def _first_square(block: Block, in_features: int) -> float:
    moved = block.lr_scale * block.scale
    entries = int(block.rows.shape[0]) * int(block.cols.shape[0]) * block.rank
    return moved**2 * entries / (3 * in_features)
