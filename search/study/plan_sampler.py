"""The sampler `plan`: proposes what a model of plans expects the most of (search/surrogate).

What it proposes depends on the study, the history and the seed alone: a search that is resumed goes
on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.config.sweep import SearchSettings
from search.study.curves import curve_of, looks_of
from search.study.standing import Standing
from search.study.study import (
    ARM,
    FEATURES,
    METHOD,
    STOPPED,
    TRAINABLE_PARAMS,
    TRAINING,
    WARM_FROM,
    choice_of,
)
from search.surrogate.acquisition import expected_area_improvement, expected_improvement
from search.surrogate.candidates import Candidate, Pool
from search.surrogate.model import PlanModel, fit_model
from search.surrogate.observation import Observation, RelatedSweep
from spaces.errors import UsageError
from spaces.planner import Planner
from spaces.search_space import Arm, SearchSpace

Floats = NDArray[np.float64]

ENOUGH = 5
"""Values that a model without a history needs; before, points are drawn evenly."""
REMEMBERED = 500
"""Of more observations the newest are taken, and the best of those before."""
BEST = 100
"""How many of them are the best."""
FITTED_ON = 150
"""Of more observations so many are taken to fit the hyperparameters to."""
SAMPLES = 32
"""Joint samples of what the trials so far are worth."""
STEPS = 24
"""Of the trials so far, how many may make the front in some sample."""
LEADERS = 8
"""Choices that have been trained and that candidates are drawn near to, in the first step."""
CLIMBS = 3
"""Steps in which candidates are drawn, after the first one near the best candidates so far."""
STARTS = 4
"""How many of these."""


@dataclass(frozen=True)
class _Known(Candidate):
    """A choice that has been trained, or is being trained."""

    runs: bool


class PlanSampler:
    """Ranks the candidates of a search.

    Args:
        study: the study, for its directions.
        space, arms, planner: what may be chosen, and what it means.
        search: what the sweep says of its trials.
        epochs: those of a trial.
        history: earlier sweeps that may tell something of this one.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        arms: Mapping[str, Arm],
        planner: Planner,
        search: SearchSettings,
        epochs: int,
        history: Sequence[RelatedSweep] = (),
    ) -> None:
        self._maximize = study.directions[0] == StudyDirection.MAXIMIZE
        self._has_front = len(study.directions) > 1
        self._pool = Pool(space, arms, planner, search.seed, search.arms)
        self._search, self._epochs, self._history = search, epochs, history
        self._candidates: dict[int, Candidate | None] = {}
        self._read: dict[int, tuple[Observation, ...]] = {}
        self._fitted: tuple[tuple[int, ...], PlanModel] | None = None

    @property
    def has_history(self) -> bool:
        """Whether it knows something before the first trial."""
        return bool(self._history)

    def ranked(self, standing: Standing, arms: Sequence[str], count: int) -> list[dict[str, Any]]:
        """The parameters of the best candidates of some arms, the best first.

        None where too little is known yet.
        """
        model = self._model(standing)
        if model is None:
            return []
        known = self._known(standing)
        ended = [each for each in known if not each.runs]
        near: Sequence[Candidate] = self._leaders(
            model, [each for each in ended if each.arm in arms], LEADERS
        )
        turn = len(standing.all_trials)
        steps = self._leaders(model, ended, STEPS) + [each for each in known if each.runs]
        found: dict[tuple[tuple[str, Any], ...], tuple[Candidate, float]] = {}
        fresh = self._pool.even(turn, arms)
        takes = self._search.takes
        sizes = [each.trainable_params for each in [*ended, *fresh]]
        largest = max((size for size in sizes if takes(size)), default=1)
        for climb in range(CLIMBS):
            fresh += self._pool.near(turn, climb, [each.params for each in near], arms)
            new = {
                key: each
                for each in fresh
                if takes(each.trainable_params) and (key := tuple(each.params.items())) not in found
            }
            gains = self._expected_gain(model, steps, list(new.values()), largest, turn)
            for (key, each), gain in zip(new.items(), gains, strict=True):
                found[key] = each, float(gain)
            best = sorted(found.values(), key=lambda pair: -pair[1])[:count]
            near, fresh = [each for each, _ in best[:STARTS]], []
        return [dict(each.params) for each, _ in best]

    def _expected_gain(
        self,
        model: PlanModel,
        steps: Sequence[Candidate],
        candidates: Sequence[Candidate],
        largest: int,
        turn: int,
    ) -> Floats:
        """What each candidate is expected to add to what there is, up to `largest` parameters."""
        if not candidates:
            return np.zeros(0)
        if not steps:  # with a history, before the first trial
            return model.gains(candidates)[0]
        rng = np.random.default_rng([self._search.seed, 2, turn])
        outlook = model.outlook(steps, candidates, SAMPLES, rng)
        if not self._has_front:
            return expected_improvement(outlook)
        reference = float(outlook.known.min()), math.log10(largest)
        return expected_area_improvement(
            outlook, _log_params(steps), _log_params(candidates), reference
        )

    def _leaders(self, model: PlanModel, known: Sequence[_Known], count: int) -> list[Candidate]:
        """Those that are the nearest to being the best, or on the front, the nearest first."""
        if not known:
            return []
        mean, sd = model.gains(known)
        best = np.full(len(known), mean.max())
        if self._has_front:
            order = np.argsort(_log_params(known), kind="stable")
            best[order] = np.maximum.accumulate(mean[order])
        nearest = np.argsort(best - mean - sd, kind="stable")[:count]
        return [known[index] for index in nearest]

    # -- what is known --------------------------------------------------------------------------

    def _model(self, standing: Standing) -> PlanModel | None:
        """The model of the trials so far, its hyperparameters fitted to the first of them."""
        observed = {
            trial.number: found
            for trial in standing.trials
            if trial.state.is_finished() and (found := self._observations(trial))
        }
        if len(observed) < (ENOUGH if not self._history else 0):
            return None
        numbers = tuple(observed)
        first = numbers[: _fitted_to(len(numbers))]
        if self._fitted is None or self._fitted[0] != first:
            taken = _spread(first, observed, self._search.seed)
            self._fitted = first, self._fit(observed, taken)
        rest = _remembered(numbers, observed, self._maximize)
        return self._fit(observed, rest, like=self._fitted[1])

    def _fit(
        self,
        observed: Mapping[int, Sequence[Observation]],
        numbers: Sequence[int],
        like: PlanModel | None = None,
    ) -> PlanModel:
        return fit_model(
            [each for number in numbers for each in observed[number]],
            maximize=self._maximize,
            history=self._history,
            seed=self._search.seed,
            like=like,
        )

    def _observations(self, trial: FrozenTrial) -> tuple[Observation, ...]:
        """What an ended trial tells, read once; nothing where it was cut off or started warm."""
        if trial.number not in self._read:
            self._read[trial.number] = tuple(self._told(trial))
        return self._read[trial.number]

    def _told(self, trial: FrozenTrial) -> Iterator[Observation]:
        attributes = trial.user_attrs
        if attributes.keys() & {WARM_FROM, STOPPED}:
            return
        described = self._described(trial)
        if described is None:
            return
        for rows, value in self._values(trial):
            yield Observation(
                described.features,
                described.method,
                value,
                rows,
                described.trainable_params,
                attributes[TRAINING],
            )

    def _values(self, trial: FrozenTrial) -> Iterator[tuple[float, float]]:
        """(share of the training, value) of an ended trial; of one that failed the value is NaN.

        Half of the epochs is as good as half of the rows.
        """
        yield from looks_of(trial).items()
        if trial.state == TrialState.COMPLETE:
            yield 1.0, float(trial.values[0])
        elif trial.state == TrialState.FAIL:
            yield 1.0, math.nan
        elif curve := curve_of(trial, self._search.metric):
            epochs = self._epochs * choice_of(trial).length
            yield min(1.0, max(curve) / epochs), float(curve[max(curve)])

    def _known(self, standing: Standing) -> list[_Known]:
        """The choices that have a value or will have one, each once."""
        found: dict[str, _Known] = {}
        for trial in standing.trials:
            ended = trial.state == TrialState.COMPLETE
            runs = trial.state == TrialState.RUNNING
            if WARM_FROM in trial.user_attrs or not (ended or runs):
                continue
            training = trial.user_attrs[TRAINING]
            if (training not in found or found[training].runs) and (
                described := self._described(trial)
            ) is not None:
                found[training] = _Known(**vars(described), runs=runs)
        return list(found.values())

    def _described(self, trial: FrozenTrial) -> Candidate | None:
        """A trial as a candidate, read once; None where its choice is no plan any more."""
        if trial.number not in self._candidates:
            self._candidates[trial.number] = self._read_as_candidate(trial)
        return self._candidates[trial.number]

    def _read_as_candidate(self, trial: FrozenTrial) -> Candidate | None:
        attributes = trial.user_attrs
        features, params = attributes.get(FEATURES), attributes[TRAINABLE_PARAMS]
        if features is None:  # an older ranksweep has begun it
            try:
                features, params = self._pool.described(choice_of(trial))
            except UsageError:
                return None
        return Candidate(trial.params, attributes[ARM], attributes[METHOD], features, params)


def _fitted_to(count: int) -> int:
    """To how many of the first trials the hyperparameters are fitted: to all at first, later to
    a number that changes rarely."""
    step = next(
        step for below, step in ((20, 1), (50, 2), (100, 5), (math.inf, 20)) if count <= below
    )
    return count - count % step


def _spread(
    numbers: Sequence[int], observed: Mapping[int, Sequence[Observation]], seed: int
) -> Sequence[int]:
    """Some of the numbers, drawn evenly where they have more than `FITTED_ON` observations."""
    count = int(FITTED_ON * _trials_each(numbers, observed))
    if len(numbers) <= count:
        return numbers
    taken = np.random.default_rng([seed, 3]).choice(len(numbers), count, replace=False)
    return [numbers[index] for index in sorted(taken)]


def _remembered(
    numbers: Sequence[int], observed: Mapping[int, Sequence[Observation]], maximize: bool
) -> Sequence[int]:
    """The trials that a model hears of, so that a proposal never costs more."""
    each = _trials_each(numbers, observed)
    if len(numbers) <= REMEMBERED * each:
        return numbers
    worst = -math.inf if maximize else math.inf

    def value(number: int) -> float:
        last = observed[number][-1].value
        return last if math.isfinite(last) else worst

    best, newest = int(BEST * each), int((REMEMBERED - BEST) * each)
    older = sorted(numbers[:-newest], key=value, reverse=maximize)[:best]
    return [*sorted(older), *numbers[-newest:]]


def _trials_each(numbers: Sequence[int], observed: Mapping[int, Sequence[Observation]]) -> float:
    """Trials for each of their observations: one, less where some had cheap looks."""
    return len(numbers) / max(1, sum(len(observed[number]) for number in numbers))


def _log_params(candidates: Sequence[Candidate]) -> Floats:
    return np.log10([max(1, each.trainable_params) for each in candidates])
