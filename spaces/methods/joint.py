"""joint: ranks by Sensitivity-LoRA, dominant rows by PiLoRA, core columns by TASO, in one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from spaces.alpha import LIKE_LORA
from spaces.choice import Factor, OptionalRank, Percent, PositiveShare
from spaces.errors import ProfileError
from spaces.methods import sensitivity
from spaces.methods.pilora import (
    Partition,
    SupplementaryScale,
    dominant_count_extremes,
    dominant_rows,
    partition_needs_profile,
    two_block_params,
    two_blocks,
    two_scales,
    unread_partition_keys,
)
from spaces.methods.ranking import NO_BOUND, largest, lr_scale, rounded_share
from spaces.methods.sensitivity import (
    RankBudget,
    allocated_ranks,
    budget_count_range,
    budget_needs_profile,
)
from spaces.plan import Plan, all_indices
from spaces.profile import Profile
from spaces.target import TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "mean_rank": [2, 4, 8, 16],
    "signal": ["combined", "global", "local"],
    "allocation": ["scaled", "uniform"],
    "supplementary_rank": [0, 1, 2],
    "partition": {"rule": ["hits", "cumulative", "all"], "threshold": {"low": 0.3, "high": 0.9}},
    "retention": {"low": 0.1, "high": 1.0},
    "top_percent": [1, 2, 5, 10],
    "alpha_over_rank": LIKE_LORA,
}


class JointChoice(RankBudget):
    """What joint lets you choose: all of Sensitivity-LoRA, PiLoRA's rows and TASO's columns."""

    RECORDED_WITHOUT: ClassVar[Mapping[str, Any]] = {
        **RankBudget.RECORDED_WITHOUT,
        "supplementary_scale": "dominant",
        "max_lr_scale": NO_BOUND,
    }

    method: Literal["joint"] = "joint"
    supplementary_rank: OptionalRank = 1
    """Rank of the block of the rows that are not dominant, never above the module's own; 0 leaves
    them untrained."""
    partition: Partition = Partition()
    """How rows are divided; rule all makes every row dominant."""
    supplementary_scale: SupplementaryScale = "dominant"
    """Scale of the other rows' update: alpha / the module's rank, that of the dominant rows, or
    alpha / its own rank."""
    retention: PositiveShare = 0.5
    """Share of a module's columns that is read; 1 reads them all."""
    top_percent: Percent = 5.0
    """k of the top-k% mask by which columns are ranked; one of `profile.top_percent`. Not read at
    `retention: 1`."""
    max_lr_scale: Factor = 4.0
    """The most that the learning rate is multiplied by where few columns are read; without a bound
    it is sqrt(1 / retention)."""


def needs_profile(choice: JointChoice) -> bool:
    """Whether the plan depends on the profile: not where all three parts are switched off."""
    return (
        budget_needs_profile(choice)
        or partition_needs_profile(choice.partition)
        or choice.retention < 1
    )


def unread_keys(values: Mapping[str, Any]) -> frozenset[str]:
    """What the parts that are switched off do not read."""
    unread = sensitivity.unread_keys(values) | unread_partition_keys(values)
    return unread | {"top_percent", "max_lr_scale"} if values.get("retention") == 1 else unread


def core_cols(
    choice: JointChoice, target: TargetModule, profile: Profile | None
) -> NDArray[np.int32]:
    """The core columns C of a module: those with the most masked entries, sorted.

    The first floor(retention * in + 0.5) of TASO's ranking of columns alone, ties by index; none of
    a module without any masked weight. Raises ProfileError where the profile lacks what is read.
    """
    if choice.retention == 1:
        return all_indices(target.shape[1])
    if profile is None:
        raise ProfileError("retention: below 1 needs a profile; give one, or use retention 1")
    counts = profile.require(target.name, "sensitivity_col_count")
    density = counts[profile.grid_line(choice.top_percent)]
    count = rounded_share(choice.retention, target.shape[1]) if np.any(density) else 0
    return largest(density, count)


def plan(choice: JointChoice, targets: Sequence[TargetModule], profile: Profile | None) -> Plan:
    """One stage, two blocks per module: r^w on its dominant rows, min(r', r^w) on the others.

    Both read the core columns C, with scale alpha / r^w (the second one's may be its own) and
    lr_scale sqrt(in / |C|), max_lr_scale at most. Raises
    ChoiceError where the budget of ranks cannot be met, ProfileError where the profile lacks what
    is read.
    """
    stage = {}
    ranks = allocated_ranks(choice, targets, profile)
    for index, (target, rank) in enumerate(zip(targets, ranks, strict=True)):
        rows = dominant_rows(choice.partition, target, profile, (choice.seed, index))
        cols = core_cols(choice, target, profile)
        if rank == 0 or cols.shape[0] == 0:
            continue
        both = rank, min(choice.supplementary_rank, rank)
        scales = two_scales(choice.alpha, both, choice.supplementary_scale)
        factor = lr_scale(cols.shape[0], target.shape[1], choice.max_lr_scale)
        stage[target.name] = two_blocks(both, target, rows, cols, scales, factor)
    return Plan.of([stage], targets)


def count_range(
    choice: JointChoice, targets: Sequence[TargetModule], dominant_fraction: float | None
) -> tuple[int, int]:
    """Least and most trainable parameters over all profiles in which every module has a masked
    weight.

    Equal where every part is known without one.
    """

    def params(target: TargetModule, rank: int) -> tuple[int, int]:
        out_features, in_features = target.shape
        cols = rounded_share(choice.retention, in_features)
        supplementary_rank = min(choice.supplementary_rank, rank)
        counts = [
            two_block_params(rank, supplementary_rank, dominant, out_features, cols)
            for dominant in dominant_count_extremes(
                choice.partition, out_features, dominant_fraction
            )
        ]
        return min(counts), max(counts)

    return budget_count_range(choice, targets, params, kink=choice.supplementary_rank)
