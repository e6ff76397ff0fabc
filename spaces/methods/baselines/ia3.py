"""IA3: a learned factor on every output of a module, or every input (Liu et al., 2022)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from spaces.choice import Choice
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {"learning_rate": {"low": 1e-3, "high": 3e-2, "log": True}}


class Ia3Choice(Choice):
    """What IA3 lets you choose: nothing of its own."""

    method: Literal["ia3"] = "ia3"


def tuner(choice: Ia3Choice, targets: Sequence[TargetModule], size: BaseSize | None) -> Tuner:
    """One number per row of a module, or per column where it is its input that is scaled.

    The paper scales what comes out of keys and values, but the feed-forward's second matrix where
    its input, the hidden layer, comes in. That matrix is told by its shape: in > out, and in above
    the smallest of all `targets`. The setting `input_modules` names these, as a JSON list.
    """
    smallest = min((target.shape[1] for target in targets), default=0)
    scales_input = [
        target for target in targets if target.shape[1] > max(target.shape[0], smallest)
    ]
    input_modules = json.dumps([target.name for target in scales_input])
    params = sum(target.shape[target in scales_input] for target in targets)
    return Tuner(choice.method, {**choice.own_values(), "input_modules": input_modules}, params)
