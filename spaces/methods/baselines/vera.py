"""VeRA: frozen random factors that all modules share, scaled by vectors (Kopiczko et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.choice import Choice, Positive, Rank
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {
    "rank": [64, 256],
    "learning_rate": {"low": 1e-3, "high": 3e-2, "log": True},
}


class VeraChoice(Choice):
    """What VeRA lets you choose."""

    method: Literal["vera"] = "vera"
    rank: Rank = 256
    """Rank of the shared factors; it may be above min(out, in), as they are not trained."""
    initial: Positive = 0.1
    """What the vector d that scales the rank starts from; the vector b of the rows starts at 0."""


def tuner(choice: VeraChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """rank + out numbers per module."""
    params = sum(choice.rank + target.shape[0] for target in targets)
    return Tuner(choice.method, choice.own_values(), params)
