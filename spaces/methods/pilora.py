"""PiLoRA: important rows of a module get a higher rank than the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar, Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, ChoiceSection, OptionalRank, Positive, Rank, Share
from spaces.errors import ProfileError
from spaces.methods.ranking import drawn, largest, rounded_share, shortest_prefix
from spaces.plan import Block, Plan, all_indices
from spaces.profile import Profile
from spaces.target import TargetModule, refuse_rank_above_limit

PartitionRule = Literal["hits", "cumulative", "top", "random", "all"]
SupplementaryScale = Literal["dominant", "own"]

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [4, 8, 16],
    "supplementary_rank": [0, 1, 2, 4],
    "partition": {"rule": ["hits", "cumulative"], "threshold": {"low": 0.3, "high": 0.9}},
    "alpha_over_rank": LIKE_LORA,
}


class Partition(ChoiceSection):
    """Which rows of a module are dominant."""

    rule: PartitionRule = "hits"
    """hits: rows that were above the mean on more than `threshold` of the scored steps; cumulative:
    the fewest rows that hold `threshold` of the row importance; top: the `threshold` most important
    rows; random: as many rows as top takes, drawn with the choice's seed; all: every row."""
    threshold: Share = 0.5
    """The rule's threshold; `all` does not read it."""


class PiloraChoice(Choice):
    """What PiLoRA lets you choose."""

    RECORDED_WITHOUT: ClassVar[Mapping[str, Any]] = {"supplementary_scale": "dominant"}

    method: Literal["pilora"] = "pilora"
    rank: Rank = 8
    """Rank r of the dominant rows' block."""
    supplementary_rank: OptionalRank = 1
    """Rank r' of the block of all other rows, at most `rank`; 0 leaves them untrained."""
    partition: Partition = Partition()
    """How rows are divided."""
    supplementary_scale: SupplementaryScale = "dominant"
    """Scale of the other rows' update: alpha / rank, that of the dominant rows, or alpha /
    supplementary_rank, its own."""
    alpha: Positive = 16.0
    """The dominant rows' update is scaled by alpha / rank."""

    @model_validator(mode="after")
    def _check_ranks(self) -> PiloraChoice:
        if self.supplementary_rank > self.rank:
            raise ValueError(
                f"supplementary_rank: {self.supplementary_rank} is above rank {self.rank}; use at "
                f"most {self.rank}"
            )
        return self


def partition_needs_profile(partition: Partition) -> bool:
    """Whether the dominant rows depend on the profile."""
    return partition.rule in ("hits", "cumulative", "top")


def needs_profile(choice: PiloraChoice) -> bool:
    """Whether the plan depends on the profile."""
    return partition_needs_profile(choice.partition)


def unread_partition_keys(values: Mapping[str, Any]) -> frozenset[str]:
    """What a rule `all` does not read, nor rows that are left untrained."""
    if values.get("partition.rule") == "all":
        return frozenset({"partition.threshold", "supplementary_scale"})
    return frozenset({"supplementary_scale"} if values.get("supplementary_rank") == 0 else ())


unread_keys = unread_partition_keys


def reconciled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a supplementary_rank that is at most rank."""
    rank = values.get("rank", PiloraChoice.model_fields["rank"].default)
    values = dict(values)
    if values.get("supplementary_rank", 0) > rank:
        values["supplementary_rank"] = rank
    return values


def dominant_rows(
    partition: Partition,
    target: TargetModule,
    profile: Profile | None,
    seed: tuple[int, int],
) -> NDArray[np.int32]:
    """The dominant rows M of a module, sorted (PiLoRA, Algorithm 1, line 14).

    `seed` is the choice's seed and the module's place in the model. A module whose row importance
    is zero throughout has no dominant rows by `cumulative` and `top`, and so none by `random` where
    the profile tells. Raises ProfileError where the profile lacks what the rule reads.
    """
    out_features = target.shape[0]
    rule = partition.rule
    if rule == "all":
        return all_indices(out_features)
    if rule == "random":
        count = rounded_share(partition.threshold, out_features)
        if _known_to_be_unimportant(profile, target):
            count = 0
        return drawn(out_features, count, seed)
    if profile is None:
        raise ProfileError(
            f"partition.rule: {rule} needs a profile; give one, or use rule random or all"
        )
    if rule == "hits":
        hits = profile.require(target.name, "hits")
        if profile.scored_steps == 0:
            raise ProfileError(
                "scored_steps: 0 in the profile, so rule hits has nothing to go by; profile again "
                "or use another rule"
            )
        return np.flatnonzero(hits / profile.scored_steps > partition.threshold).astype(np.int32)
    importance = profile.require(target.name, "row_importance")
    if rule == "cumulative":
        return largest(importance, shortest_prefix(importance, partition.threshold))
    if rule == "top":
        count = rounded_share(partition.threshold, out_features) if np.any(importance) else 0
        return largest(importance, count)
    assert_never(rule)


def two_blocks(
    ranks: tuple[int, int],
    target: TargetModule,
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    scales: tuple[float, float],
    lr_scale: float = 1.0,
) -> list[Block]:
    """A block of the first rank on `rows` of a module and one of the second on all others, each
    with its scale."""
    others = np.ones(target.shape[0], dtype=np.bool_)
    others[rows] = False
    return [
        Block(ranks[0], rows, cols, scales[0], lr_scale),
        Block(ranks[1], np.flatnonzero(others).astype(np.int32), cols, scales[1], lr_scale),
    ]


def two_scales(
    alpha: float, ranks: tuple[int, int], supplementary: SupplementaryScale
) -> tuple[float, float]:
    """The scales of the dominant and the other rows' update."""
    own = supplementary == "own" and ranks[1] > 0
    return alpha / ranks[0], alpha / (ranks[1] if own else ranks[0])


def plan(choice: PiloraChoice, targets: Sequence[TargetModule], profile: Profile | None) -> Plan:
    """One stage; rank r on each module's dominant rows and rank r' on the others (Eq. 10).

    Raises ChoiceError where the rank is above min(out, in), ProfileError where the profile lacks
    what is read.
    """
    refuse_rank_above_limit("rank", choice.rank, targets)
    ranks = choice.rank, choice.supplementary_rank
    scales = two_scales(choice.alpha, ranks, choice.supplementary_scale)
    stage = {}
    for index, target in enumerate(targets):
        rows = dominant_rows(choice.partition, target, profile, (choice.seed, index))
        cols = all_indices(target.shape[1])
        stage[target.name] = two_blocks(ranks, target, rows, cols, scales)
    return Plan.of([stage], targets)


def dominant_count_extremes(
    partition: Partition, out_features: int, dominant_fraction: float | None
) -> list[int]:
    """Numbers of dominant rows among which a module's parameters are fewest and most.

    One number where it is known without a profile: `dominant_fraction` given, or a rule that fixes
    it (`top` and `random` for a module of any importance at all). Between the inner ones the count
    of parameters is linear.
    """
    if dominant_fraction is not None:
        return [rounded_share(dominant_fraction, out_features)]
    if partition.rule == "all":
        return [out_features]
    if partition.rule in ("top", "random"):
        return [rounded_share(partition.threshold, out_features)]
    if partition.rule == "hits":
        # No row can be hit on more than every scored step.
        most = out_features if partition.threshold < 1 else 0
    else:
        # The k largest of n numbers hold at least k / n of their sum.
        most = ceil(partition.threshold * out_features)
        if most / out_features < partition.threshold:
            most += 1
    return sorted({0, min(1, most), min(most, max(out_features - 1, 0)), most})


def count_range(
    choice: PiloraChoice, targets: Sequence[TargetModule], dominant_fraction: float | None
) -> tuple[int, int]:
    """Least and most trainable parameters over all profiles.

    Equal where the number of dominant rows is known without one.
    """
    refuse_rank_above_limit("rank", choice.rank, targets)
    least = most = 0
    for target in targets:
        out_features, in_features = target.shape
        counts = [
            two_block_params(
                choice.rank, choice.supplementary_rank, dominant, out_features, in_features
            )
            for dominant in dominant_count_extremes(
                choice.partition, out_features, dominant_fraction
            )
        ]
        least += min(counts)
        most += max(counts)
    return least, most


def two_block_params(
    rank: int, supplementary_rank: int, dominant: int, out_features: int, cols: int
) -> int:
    """Parameters of a module: `dominant` rows at `rank`, the others at `supplementary_rank`.

    Both blocks read `cols` columns; one without rows or columns is left out.
    """
    others = out_features - dominant
    first = rank * (dominant + cols) if dominant and cols else 0
    second = supplementary_rank * (others + cols) if others and cols else 0
    return first + second


def _known_to_be_unimportant(profile: Profile | None, target: TargetModule) -> bool:
    module = profile.modules.get(target.name) if profile else None
    importance = module.row_importance if module else None
    return importance is not None and not np.any(importance)
