"""When a search has found enough: more trials are not worth their cost (`search.stop_when`)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.config.sweep import SearchSettings, StopWhenSettings
from search.objective import Objective
from search.study.observations import observations
from search.study.standing import Standing
from search.study.study import ARM, FEATURES, TRAINABLE_PARAMS, choice_of
from search.surrogate.draws import LEADERS, Drawn, at_other_rates, draws
from search.surrogate.observation import Observation, RelatedSweep
from search.surrogate.worth import Worth, worth_of_more
from spaces.planner import Planner
from spaces.search_space import SearchSpace

if TYPE_CHECKING:
    from search.surrogate.model import PlanModel

_ENDED = "ranksweep_enough"
FEWEST_TRIALS = 6
"""Complete trials without which a model says nothing of more."""
TRIES = 3
"""An arm of which so many trials have ended, and none complete, is not waited for."""


class Enough:
    """Decides after each trial that has ended whether a search goes on.

    Once it has ended, its study says so: it does not go on under the same `search.stop_when`, for
    no driver.

    Args:
        study: the study.
        search: its settings.
        space, planner: what may yet be tried.
        history: what earlier sweeps tell.
    """

    def __init__(
        self,
        study: optuna.Study,
        search: SearchSettings,
        space: SearchSpace,
        planner: Planner,
        history: Sequence[RelatedSweep] = (),
    ) -> None:
        self._study, self._search, self._planner = study, search, planner
        self._space, self._history = space, history
        self._drawn: list[Drawn] | None = None
        self._model: PlanModel | None = None
        self._fitted_to = 0
        self._looked_at = -1
        self.reason: str | None = None
        """Why the search has ended; None while it goes on."""

    def judge(self, standing: Standing, closed: Collection[str]) -> str | None:
        """Why the search is to end, or has; None while it goes on. `closed` arms take no part."""
        settings = self._search.stop_when
        if settings is None or self.reason is not None:
            return self.reason
        ended = sum(trial.state.is_finished() for trial in standing.trials)
        if ended == self._looked_at:
            return None
        self._looked_at = ended
        self.reason = self._said_before(settings)
        if self.reason is None and self._every_arm_has_its_trial(standing.trials, closed):
            self.reason = self._judged(standing, settings, closed)
        return self.reason

    def _said_before(self, settings: StopWhenSettings) -> str | None:
        """What the study says, where it has ended by the same settings."""
        said: Mapping[str, Any] = json.loads(self._study.user_attrs.get(_ENDED, "{}"))
        return said["reason"] if said.get("settings") == settings.model_dump() else None

    def _every_arm_has_its_trial(
        self, trials: Sequence[FrozenTrial], closed: Collection[str]
    ) -> bool:
        for arm in self._space.arms(self._search.arms):
            own = [trial.state for trial in trials if trial.user_attrs[ARM] == arm.name]
            over = sum(state.is_finished() for state in own)
            if TrialState.COMPLETE not in own and arm.name not in closed and over < TRIES:
                return False
        return True

    def _judged(
        self, standing: Standing, settings: StopWhenSettings, closed: Collection[str]
    ) -> str | None:
        found = observations(standing.comparable, self._planner)
        every = [*self._candidates(), *at_other_rates(self._space, self._leaders(standing))]
        candidates = [each for each in every if each.arm not in closed]
        if len({each.repeat_of for each in found}) < FEWEST_TRIALS or not candidates:
            return None
        ahead = self._expected(found, candidates, settings)
        if ahead.in_noise >= settings.improvement_below:
            return None
        reason = in_words(ahead, self._search.objective, settings)
        said = {"settings": settings.model_dump(), "reason": reason}
        self._study.set_user_attr(_ENDED, json.dumps(said))
        return reason

    def _expected(
        self,
        found: Sequence[Observation],
        candidates: Sequence[Drawn],
        settings: StopWhenSettings,
    ) -> Worth:
        """What is to be expected, of a model that is fitted anew where that may end the search.

        Else the hyperparameters of an older one serve, until there is a tenth more to fit them to.
        """
        if self._model is not None and len(found) < 1.1 * self._fitted_to:
            ahead = self._by(self._fit(found, self._model), found, candidates, settings)
            if ahead.in_noise >= settings.improvement_below:
                return ahead
        self._model, self._fitted_to = self._fit(found), len(found)
        return self._by(self._model, found, candidates, settings)

    def _fit(self, found: Sequence[Observation], like: PlanModel | None = None) -> PlanModel:
        from search.surrogate.model import fit_model  # loads torch

        return fit_model(
            found,
            maximize=self._search.mode == "max",
            history=self._history,
            seed=self._search.seed,
            like=like,
        )

    def _by(
        self,
        model: PlanModel,
        found: Sequence[Observation],
        candidates: Sequence[Drawn],
        settings: StopWhenSettings,
    ) -> Worth:
        return worth_of_more(
            model,
            list({each.repeat_of: each for each in found}.values()),
            candidates,
            settings.trials,
            maximize=self._search.mode == "max",
            pareto=len(self._search.objectives) > 1,
            seed=self._search.seed,
        )

    def _leaders(self, standing: Standing) -> list[Drawn]:
        """The best of the tried choices."""
        objective = self._search.objective
        trials = [
            trial
            for trial in standing.comparable
            if trial.state == TrialState.COMPLETE and FEATURES in trial.user_attrs
        ]
        trials.sort(key=lambda trial: -objective.gain(trial.values[0]))
        return [
            Drawn(
                choice_of(trial),
                trial.user_attrs[ARM],
                trial.user_attrs[FEATURES],
                trial.user_attrs[TRAINABLE_PARAMS],
            )
            for trial in trials[:LEADERS]
        ]

    def _candidates(self) -> Sequence[Drawn]:
        if self._drawn is None:
            arms = self._space.arms(self._search.arms)
            takes, seed = self._search.takes, self._search.seed
            self._drawn = draws(self._space, self._planner, arms, takes=takes, seed=seed)
        return self._drawn


def in_words(ahead: Worth, objective: Objective, settings: StopWhenSettings) -> str:
    """Why a search ends, for a user."""
    return (
        f"search.stop_when: the next {ahead.trials} trials are expected to improve "
        f"{objective.metric} by {ahead.gain:.2g}, {ahead.in_noise:.2g} of the deviation between "
        f"seeds ({ahead.noise_sd:.2g}), which is below {settings.improvement_below:g}"
    )
