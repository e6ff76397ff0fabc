"""Full fine-tuning: every parameter of the base trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.choice import Choice
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule, require_size

DEFAULT_SPACE: dict[str, Any] = {"learning_rate": {"low": 1e-5, "high": 5e-4, "log": True}}


class FullChoice(Choice):
    """What full fine-tuning lets you choose: nothing of its own."""

    method: Literal["full"] = "full"


def tuner(choice: FullChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """Every parameter of the base, whatever the targets.

    Raises ChoiceError where the base's size is not known.
    """
    return Tuner(choice.method, choice.own_values(), require_size(choice.method, size).params)
