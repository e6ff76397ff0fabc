"""Adapters: a small network behind modules that write to the residual (Houlsby et al., 2019)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from spaces.choice import Choice, Count
from spaces.errors import ChoiceError
from spaces.plan import Tuner
from spaces.target import BaseSize, TargetModule

DEFAULT_SPACE: dict[str, Any] = {"size": [4, 8, 16, 32]}

RESIDUAL_SUFFIXES = (
    "output.dense",
    "o_proj",
    "Wo",
    "down_proj",
    "c_proj",
    "out_proj",
    "fc2",
    "ffn_output",
    "attention.dense",
    "out_lin",
    "lin2",
    "dense_4h_to_h",
)
"""How the names of modules end that write to the residual stream."""


class BottleneckChoice(Choice):
    """What bottleneck adapters let you choose."""

    method: Literal["bottleneck"] = "bottleneck"
    size: Count = 16
    """Width of the hidden layer of every adapter."""
    activation: Literal["gelu", "relu"] = "gelu"
    """What stands between its two matrices."""


def tuner(
    choice: BottleneckChoice, targets: Sequence[TargetModule], size: BaseSize | None
) -> Tuner:
    """size * out + size numbers down and out * size + out up, behind each module that writes.

    The setting `modules` names these, as a JSON list. Raises ChoiceError where no target is one.
    """
    writers = [target for target in targets if target.name.endswith(RESIDUAL_SUFFIXES)]
    if targets and not writers:
        raise ChoiceError(
            "method: bottleneck puts adapters behind the modules that write to the residual "
            "stream, and no target module is one; add the base's own among "
            f"{', '.join(RESIDUAL_SUFFIXES)} to the target modules"
        )
    params = sum(
        2 * choice.size * target.shape[0] + choice.size + target.shape[0] for target in writers
    )
    modules = json.dumps([target.name for target in writers])
    return Tuner(choice.method, {**choice.own_values(), "modules": modules}, params)
