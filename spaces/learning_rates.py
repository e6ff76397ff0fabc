"""Ranges of learning rates at which the first updates of all methods are of the same sizes.

A range for one method says little for another: TASO scales its updates by 16 where LoRA scales
them by 2. What the ranges have in common is the size of what a first step adds to the weights,
`log10_first_update` of `spaces.features`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from spaces.choice import Choice
from spaces.domain import Range
from spaces.errors import ChoiceError
from spaces.features import plan_features
from spaces.methods.lora import LoraChoice
from spaces.methods.registry import make_plan
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule

LOW, HIGH = 5e-5, 1e-2
"""The ends of the range of LoRA's default choice, rank 8 and alpha 16."""

_SIZE = 4096
_DIGITS = 3
"""Significant digits of an end, so that every machine has the same."""


def range_of_first_updates(choice: Choice) -> Range:
    """The learning rates that give a choice of a method of blocks first updates as large as LoRA's
    default choice has between `LOW` and `HIGH`.

    A first update grows in proportion to the learning rate. It is that of one square matrix of
    which half of the rows are dominant, as much of a core lies in rows as in columns, and no module
    is more sensitive than another: so the range depends on the choice alone, and not on the base or
    a profile, which not every driver of a sweep has when it reads the space. A choice without a
    block, or of a rank that such a matrix cannot take, has LoRA's range.
    """
    own, of_lora = _first_update(choice), _first_update(LoraChoice())
    factor = 1.0 if own is None or of_lora is None else of_lora / own
    return Range(_rounded(LOW * factor), _rounded(HIGH * factor), log=True)


@cache
def _first_update(choice: Choice) -> float | None:
    """The size of the first update at a learning rate of 1; None where there is none."""
    profile = _stand_in(float(getattr(choice, "top_percent", 5.0)))
    try:
        plan = make_plan(choice, profile.targets, profile)
    except ChoiceError:
        return None
    size = plan_features(plan, 1.0).get("log10_first_update")
    return None if size is None else 10.0**size


@cache
def _stand_in(top_percent: float) -> Profile:
    """A profile of one square matrix in which nothing stands out."""
    name, steps = "matrix", 2
    counts = np.arange(_SIZE, 0, -1)[None]
    even = np.ones(_SIZE, dtype=np.float32)
    module = ModuleProfile(
        hits=np.repeat(np.array([steps, 0], dtype=np.int32), _SIZE // 2),
        row_importance=even,
        sensitivity_row_count=counts,
        sensitivity_col_count=counts,
        gradient_row_count=counts,
        gradient_col_count=counts,
        hessian_diag=even,
    )
    target = TargetModule(name, (_SIZE, _SIZE))
    return Profile((target,), steps, (top_percent,), {name: module}, {})


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_DIGITS}g}")
