"""DoRA: LoRA turns the rows of a weight, magnitudes set their length (Liu et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Positive, Rank
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {"rank": [2, 4, 8, 16], "alpha_over_rank": LIKE_LORA}


class DoraChoice(Choice):
    """What DoRA lets you choose."""

    method: Literal["dora"] = "dora"
    rank: Rank = 8
    """Rank of every module's directional update."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""


def tuner(choice: DoraChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank * (out + in) numbers per module, and `out` magnitudes.

    Raises ChoiceError where the rank is above min(out, in).
    """
    params = lora_params(choice.rank, targets) + sum(target.shape[0] for target in targets)
    return Tuner(choice.method, choice.own_values(), params)
