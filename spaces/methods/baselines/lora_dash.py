"""LoRA-Dash: LoRA finds the directions that matter, which then train too (Si et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Count, Positive, Rank, Share
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule, refuse_rank_above_limit

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [2, 4, 8, 16],
    "directions": 8,
    "alpha_over_rank": LIKE_LORA,
}


class LoraDashChoice(Choice):
    """What LoRA-Dash lets you choose."""

    method: Literal["lora_dash"] = "lora_dash"
    rank: Rank = 8
    """Rank of every module's update."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    directions: Count = 8
    """How many singular directions of every module's weight get a change of their own: those that
    the update has changed most, relative to their singular value, by the end of the pre-launch."""
    launch_share: Share = 0.1
    """Share of the steps that is pre-launch, in which LoRA trains alone."""


def tuner(choice: LoraDashChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank * (out + in) numbers per module, and one for each direction.

    Raises ChoiceError where the rank or the number of directions is above min(out, in).
    """
    refuse_rank_above_limit("directions", choice.directions, targets)
    params = lora_params(choice.rank, targets) + choice.directions * len(targets)
    return Tuner(choice.method, choice.own_values(), params)
