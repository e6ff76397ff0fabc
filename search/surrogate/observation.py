"""What a search knows of a trial: the features of its plan, and what it was worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spaces.features import plan_features
from spaces.plan import Plan
from spaces.profile import Profile

DIGITS = 5
"""Decimals of a feature in records: a hundred-thousandth of a power of ten is beyond all noise."""


@dataclass(frozen=True)
class Observation:
    """One value that a choice was found to have.

    `features` are those of spaces/features.py; `value` is in the metric's own units; `rows` is the
    share of the training rows that it was trained on.
    """

    features: Mapping[str, float]
    method: str
    value: float
    rows: float = 1.0
    params: int = 0
    """Trainable parameters."""
    repeat_of: str = ""
    """What trials of one training with other seeds have in common."""


@dataclass(frozen=True)
class RelatedSweep:
    """The complete trials of an earlier sweep that may tell something of this one.

    `relation` is how it is akin: the same task on the same base, the same task on another base, or
    another task on the same base. `maximized` says which values of its metric are better.
    """

    run_id: str
    relation: Literal["same", "task", "base"]
    maximized: bool
    observations: tuple[Observation, ...]


def recorded_features(
    plan: Plan, learning_rate: float, profile: Profile | None
) -> dict[str, float]:
    """The features of a plan as the record of a trial keeps them, rounded to `DIGITS` decimals."""
    found = plan_features(plan, learning_rate, profile)
    return {name: round(value, DIGITS) for name, value in found.items()}
