"""LoRA-XS: a small matrix between the frozen singular vectors of a weight (Balazy et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Positive, Rank
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule, refuse_rank_above_limit

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [4, 8, 16, 32],
    "learning_rate": {"low": 5e-4, "high": 2e-2, "log": True},
    "alpha_over_rank": LIKE_LORA,
}


class LoraXsChoice(Choice):
    """What LoRA-XS lets you choose."""

    method: Literal["lora_xs"] = "lora_xs"
    rank: Rank = 8
    """How many of the largest singular components span every module's update; the matrix R
    [rank, rank] between them is all that trains."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""


def tuner(choice: LoraXsChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank * rank numbers per module. Raises ChoiceError where the rank is above min(out, in)."""
    refuse_rank_above_limit("rank", choice.rank, targets)
    return Tuner(choice.method, choice.own_values(), choice.rank**2 * len(targets))
