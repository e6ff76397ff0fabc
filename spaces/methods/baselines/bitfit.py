"""BitFit: the biases of the base train, and nothing else (Ben Zaken et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spaces.choice import Choice
from spaces.errors import ChoiceError
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule, require_size

DEFAULT_SPACE: dict[str, Any] = {"learning_rate": {"low": 2e-4, "high": 1e-2, "log": True}}


class BitfitChoice(Choice):
    """What BitFit lets you choose: nothing of its own."""

    method: Literal["bitfit"] = "bitfit"


def tuner(choice: BitfitChoice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """Every bias of the base, whatever the targets.

    Raises ChoiceError where the base's size is not known or it has no bias.
    """
    params = require_size(choice.method, size).bias_params
    if params == 0:
        raise ChoiceError(
            "method: bitfit trains the biases of the base, which has none; use another method"
        )
    return Tuner(choice.method, choice.own_values(), params)
