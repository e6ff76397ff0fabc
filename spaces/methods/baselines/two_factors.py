"""Variants of LoRA that train its two factors and nothing else: scaled, started or drawn otherwise.

rsLoRA (Kalajdzievski, 2023), PiSSA (Meng et al., 2024), MiLoRA (Wang et al., 2024) and DyLoRA
(Valipour et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.alpha import LIKE_LORA
from spaces.choice import Choice, Positive, Rank
from spaces.methods.lora import lora_params
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {"rank": [2, 4, 8, 16]}
SCALED_SPACE: dict[str, Any] = {**DEFAULT_SPACE, "alpha_over_rank": LIKE_LORA}
"""That of the variants that scale their updates."""


class RsloraChoice(Choice):
    """What rsLoRA lets you choose: LoRA whose scale keeps high ranks learning."""

    method: Literal["rslora"] = "rslora"
    rank: Rank = 8
    """Rank of every module's update."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / sqrt(rank)."""


class PissaChoice(Choice):
    """What PiSSA lets you choose: LoRA that starts from a weight's largest components."""

    method: Literal["pissa"] = "pissa"
    rank: Rank = 8
    """How many singular components of every module train, unscaled (alpha = rank); the rest of the
    weight is frozen."""


class MiloraChoice(Choice):
    """What MiLoRA lets you choose: LoRA that starts from a weight's smallest components."""

    method: Literal["milora"] = "milora"
    rank: Rank = 8
    """How many singular components of every module train, unscaled (alpha = rank); the rest of the
    weight is frozen."""


class DyloraChoice(Choice):
    """What DyLoRA lets you choose: LoRA that each step trains at a rank of its own."""

    method: Literal["dylora"] = "dylora"
    rank: Rank = 8
    """The largest rank: a step trains one drawn from 1 to it, and the trial is measured at it."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""


def tuner(
    choice: RsloraChoice | PissaChoice | MiloraChoice | DyloraChoice,
    targets: Sequence[TargetModule],
    size: BaseSize | None,
) -> Tuner:
    """rank * (out + in) numbers per module.

    Raises ChoiceError where the rank is above min(out, in).
    """
    return Tuner(choice.method, choice.own_values(), lora_params(choice.rank, targets))
