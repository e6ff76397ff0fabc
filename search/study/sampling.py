"""Points drawn from a sampler, before Optuna has a trial of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from heapq import nlargest, nsmallest
from itertools import chain
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

#: Beyond so many trials a sampler for one objective hears of these newest, and of the best.
NEWEST = 500
BEST = 25  # as many as TPE ever takes for good; the older the others, the less they weigh with it


class Snapshot:
    """A study's trials as they were at one moment, from which any number of points can be drawn.

    Neither a draw nor the sampler writes to the study's storage or reads it again. What the sampler
    has drawn in vain it learns as a violated constraint: `refused` holds such points, as trials
    that the study does not have, and is added to.
    """

    def __init__(
        self,
        trials: Sequence[FrozenTrial],
        directions: Sequence[StudyDirection],
        refused: list[FrozenTrial] | None = None,
    ) -> None:
        self._refused = [] if refused is None else refused
        kept = _Kept(_remembered(trials, directions), self._refused)
        self.study = optuna.create_study(storage=kept, directions=directions)
        # The sampler compares all of a trial's distributions with those of all trials before it:
        # one trial of each kind tells it as much.
        kinds = {(trial.state, frozenset(trial.distributions)): trial for trial in trials}
        one_of_each = _Kept(list(kinds.values()), self._refused)
        self._kinds = optuna.create_study(storage=one_of_each, directions=directions)
        self._trial = create_trial(state=TrialState.RUNNING)
        self._trial.number = len(trials)

    def draw(self, sampler: BaseSampler, fixed: Mapping[str, Any]) -> Point:
        """A point of the sampler's with some parameters fixed.

        Where the parameter ``method`` is, the sampler is not asked for those of other methods.
        """
        return Point(self.study, self._kinds, self._trial, sampler, fixed)

    def refuse(self, point: Point, constraint: str, excess: float) -> None:
        """Let the sampler know that a point is beyond a constraint, and by how much."""
        trial = create_trial(
            state=TrialState.PRUNED,
            params=point.params,
            distributions=point.distributions,
            constraints={constraint: excess},
        )
        trial.number = self._trial.number - 1  # as recent as the newest, for TPE forgets
        self._refused.append(trial)


class Point:
    """Suggests as an Optuna trial does, and keeps what it has suggested to itself.

    Raises:
        ValueError: (by the ``suggest_`` methods) the study has such a parameter over other values.
    """

    def __init__(
        self,
        study: optuna.Study,
        kinds: optuna.Study,
        trial: FrozenTrial,
        sampler: BaseSampler,
        fixed: Mapping[str, Any],
    ) -> None:
        self._study, self._trial, self._sampler = study, trial, sampler
        own = f"{fixed['method']}." if "method" in fixed else ""
        self._space = {
            name: distribution
            for name, distribution in sampler.infer_relative_search_space(kinds, trial).items()
            if name not in fixed and name.startswith(own)
        }
        self._drawn = {**sampler.sample_relative(study, trial, self._space), **fixed}
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return int(self._suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._space:
            check_distribution_compatibility(self._space[name], distribution)
        if name not in self.params:
            if name not in self._drawn:
                self._drawn[name] = self._sampler.sample_independent(
                    self._study, self._trial, name, distribution
                )
            self.params[name] = self._drawn[name]
            self.distributions[name] = distribution
        return self.params[name]


def _remembered(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> Sequence[FrozenTrial]:
    """What a sampler hears of a long study, so that a draw never costs more than at its start."""
    if len(trials) <= NEWEST or len(directions) > 1:
        return trials
    complete = [trial for trial in trials[:-NEWEST] if trial.state == TrialState.COMPLETE]
    first = nsmallest if directions[0] == StudyDirection.MINIMIZE else nlargest
    best = first(BEST, complete, key=lambda trial: trial.values[0])
    return [*sorted(best, key=lambda trial: trial.number), *trials[-NEWEST:]]


class _Kept(InMemoryStorage):  # type: ignore[misc]
    """Trials to be read by a sampler; what it would note of the one it draws for is not kept."""

    def __init__(self, trials: Sequence[FrozenTrial], refused: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._trials, self._refused = trials, refused

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        every = chain(self._trials, self._refused)
        return [trial for trial in every if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        pass
