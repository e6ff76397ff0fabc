"""PARA: LoRA whose ranks are pruned once it is trained (Kumaravelu et al., 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Positive, PositiveShare, Rank
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [4, 8, 16],
    "keep": [0.1, 0.25, 0.5],
    "alpha_over_rank": LIKE_LORA,
}


class ParaChoice(Choice):
    """What PARA lets you choose."""

    method: Literal["para"] = "para"
    rank: Rank = 16
    """Rank of every module while it trains; what is counted."""
    keep: PositiveShare = 0.25
    """Share of all modules' singular components that stays: those of the largest values."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""


def tuner(choice: ParaChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank * (out + in) numbers per module, of which all train and a part is kept.

    Raises ChoiceError where the rank is above min(out, in).
    """
    return Tuner(choice.method, choice.own_values(), lora_params(choice.rank, targets))
