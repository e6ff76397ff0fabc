"""Which keys of a choice had to do with the metric, as Optuna judges it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.importance import (
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import create_trial

from search.objective import Objective

FEWEST = 8
"""Trials below which nothing can be said of a key's part."""
MOST_BY_FOREST = 200
"""Trials up to which a forest is grown (fANOVA, Hutter et al. 2014); of more the best tenth is set
beside all (PED-ANOVA, Watanabe et al. 2023), which costs little however many they are."""
_TREES, _SEED = 32, 0


@dataclass(frozen=True)
class Importance:
    """A key's part in how the metric differs between trials, from 0 to 1; all parts sum to 1."""

    key: str
    share: float


def importances(
    choices: Sequence[Mapping[str, Any]], values: Sequence[float], objective: Objective
) -> list[Importance]:
    """The keys that all choices have and not all alike, the most important first.

    `choices` are flat, `values` the metric of each. Empty below `FEWEST` choices, and where all
    values are equal.
    """
    if len(choices) < FEWEST or len(set(values)) < 2:
        return []
    common = [key for key in choices[0] if all(key in each for each in choices)]
    space = {key: _distribution([each[key] for each in choices]) for key in common}
    searched = {key: each for key, each in space.items() if each is not None}
    if not searched:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    toward = "maximize" if objective.mode == "max" else "minimize"
    study = optuna.create_study(direction=toward)
    study.add_trials(
        [
            create_trial(
                value=value,
                params={key: _plain(each[key], searched[key]) for key in searched},
                distributions=searched,
            )
            for each, value in zip(choices, values, strict=True)
        ]
    )
    evaluator = (
        FanovaImportanceEvaluator(n_trees=_TREES, seed=_SEED)
        if len(choices) <= MOST_BY_FOREST
        else PedAnovaImportanceEvaluator()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study, evaluator=evaluator)
    return [Importance(key, float(share)) for key, share in found.items()]


def _distribution(values: Sequence[Any]) -> BaseDistribution | None:
    """What these values may have been drawn from; None where they are all alike."""
    distinct = {str(each) for each in values}
    if len(distinct) < 2:
        return None
    numbers = [each for each in values if isinstance(each, int | float) and each is not True]
    if len(numbers) < len(values) or any(isinstance(each, bool) for each in values):
        return CategoricalDistribution(sorted(distinct))
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low >= 10
    if all(isinstance(each, int) for each in numbers):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _plain(value: Any, distribution: BaseDistribution) -> Any:
    return str(value) if isinstance(distribution, CategoricalDistribution) else value
