"""SoRA: LoRA with a gate per rank that proximal steps bring to zero (Ding et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, NonNegative, Positive, Rank
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [2, 4, 8, 16],
    "sparsity": [0.01, 0.1, 1.0],
    "alpha_over_rank": LIKE_LORA,
}


class SoraChoice(Choice):
    """What SoRA lets you choose."""

    method: Literal["sora"] = "sora"
    rank: Rank = 8
    """The largest rank; the gates that end at zero take theirs away."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    sparsity: NonNegative = 0.1
    """After each step a gate moves to zero by sparsity * the learning rate, and stops there."""


def tuner(choice: SoraChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank * (out + in) numbers per module, and `rank` gates.

    Raises ChoiceError where the rank is above min(out, in).
    """
    params = lora_params(choice.rank, targets) + choice.rank * len(targets)
    return Tuner(choice.method, choice.own_values(), params)
