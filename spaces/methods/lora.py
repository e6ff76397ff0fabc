"""LoRA: one block of one rank on every target module, all rows and columns (Hu et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Positive, Rank
from spaces.plan import Block, Plan, all_indices
from spaces.profile import Profile
from spaces.target import TargetModule, refuse_rank_above_limit

DEFAULT_SPACE: dict[str, Any] = {"rank": [1, 2, 4, 8, 16, 32], "alpha_over_rank": LIKE_LORA}


class LoraChoice(Choice):
    """What LoRA lets you choose."""

    method: Literal["lora"] = "lora"
    rank: Rank = 8
    """Rank of every module's update."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""


def plan(choice: LoraChoice, targets: Sequence[TargetModule], profile: Profile | None) -> Plan:
    """One stage, one block per module. Raises ChoiceError where the rank is above min(out, in)."""
    refuse_rank_above_limit("rank", choice.rank, targets)
    stage = {target.name: [whole_block(target, choice.rank, choice.alpha)] for target in targets}
    return Plan.of([stage], targets)


def whole_block(target: TargetModule, rank: int, alpha: float) -> Block:
    """A block over all rows and columns of a module, scaled by alpha / rank."""
    out_features, in_features = target.shape
    return Block(rank, all_indices(out_features), all_indices(in_features), alpha / rank)


def count_range(
    choice: LoraChoice, targets: Sequence[TargetModule], dominant_fraction: float | None
) -> tuple[int, int]:
    """Trainable parameters: exact."""
    count = lora_params(choice.rank, targets)
    return count, count


def lora_params(rank: int, targets: Sequence[TargetModule], key: str = "rank") -> int:
    """Numbers in A [rank, in] and B [out, rank] of every module.

    Raises ChoiceError naming the choice's `key` where the rank is above min(out, in).
    """
    refuse_rank_above_limit(key, rank, targets)
    return sum(rank * sum(target.shape) for target in targets)
