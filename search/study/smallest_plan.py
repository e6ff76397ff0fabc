"""The smallest plan that a method can still make: whether anything of it is within `max_params`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial

from search.study.sampling import Point
from spaces.errors import UsageError
from spaces.planner import Planner
from spaces.search_space import SearchSpace

_WITHOUT_A_SAY = (".learning_rate", ".alpha", ".alpha_over_rank")
"""How the parameters end that no plan's size depends on."""


def smallest_plan(
    start: Point, kept: Mapping[str, Any], space: SearchSpace, planner: Planner
) -> tuple[dict[str, Any], float]:
    """The smallest plan near `start`, by coordinate descent over the ends of its ranges.

    Parameters in `kept` stay as they are there. Returns the point, its learning rate and alpha left
    to the sampler, and its trainable parameters.
    """

    def params_at(point: dict[str, Any]) -> float:
        try:
            return planner.params(space.suggest(FixedTrial(point)))
        except (UsageError, ValueError):  # ValueError: another value asks for other parameters
            return math.inf

    best = dict(start.params)
    count = params_at(best)
    for _ in range(2):
        before = count
        for name, distribution in start.distributions.items():
            if name in kept or name.endswith(_WITHOUT_A_SAY):
                continue
            for value in _ends(distribution):
                tried = params_at({**best, name: value})
                if tried < count:
                    best[name], count = value, tried
        if count == before:
            break
    fixed = {name: value for name, value in best.items() if not name.endswith(_WITHOUT_A_SAY)}
    return {**fixed, **kept}, count


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values of a range that a coordinate descent tries."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    return distribution.low, distribution.high
