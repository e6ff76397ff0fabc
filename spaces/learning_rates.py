"""Ranges of learning rates within which the first updates of every method, on every base, are of
the same sizes.

One range for all says little: TASO scales its updates by 16 where LoRA scales them by 2, and the
best rates of LoRA fall with the size of the base. What good rates have in common is the size of
what a first step adds to the weights, `log10_first_update` of `spaces.features`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt

import numpy as np

from spaces.choice import Choice
from spaces.domain import Range
from spaces.errors import ChoiceError
from spaces.features import plan_features
from spaces.methods.lora import LoraChoice
from spaces.methods.registry import METHODS, make_plan
from spaces.profile import ModuleProfile, Profile
from spaces.target import TargetModule

SMALLEST, LARGEST = 0.04, 8.0
"""The sizes of first updates that are searched: the Frobenius norm over all target modules."""

_ROWS = 20_736
"""Rows of all target modules together where they are not known: those of MiniLM, of 22 million
parameters."""
_SIZE = 4096
_DIGITS = 3
"""Significant digits of an end, so that every machine has the same."""


def range_of_first_updates(choice: Choice, targets: Sequence[TargetModule] = ()) -> Range:
    """The learning rates that give a choice first updates between `SMALLEST` and `LARGEST`.

    A first update grows in proportion to the learning rate and to the root of the rows of all
    `targets`. What the choice makes of it is that of one square matrix of which half of the rows
    are dominant and a core lies in rows as in columns, and where no module is more sensitive than
    another: so the range is the same before there is a profile. A baseline, a choice without a
    block, and one of a rank that such a matrix cannot take have the range of LoRA's default.
    """
    of_lora = _first_update(LoraChoice())
    own = of_lora if METHODS[choice.method].baseline else _first_update(choice) or of_lora
    assert own is not None
    size = own * sqrt(sum(target.shape[0] for target in targets) or _ROWS)
    return Range(_rounded(SMALLEST / size), _rounded(LARGEST / size), log=True)


@cache
def _first_update(choice: Choice) -> float | None:
    """The size of the first update of one row at a learning rate of 1; None where there is none."""
    profile = _stand_in(float(getattr(choice, "top_percent", 5.0)))
    try:
        plan = make_plan(choice, profile.targets, profile)
    except ChoiceError:
        return None
    size = plan_features(plan, 1.0).get("log10_first_update")
    return None if size is None else float(10.0**size) / sqrt(_SIZE)


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
