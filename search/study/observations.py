"""The complete trials of a study, as a model learns from them."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from search.study.study import (
    CHOICE,
    DUPLICATE_OF,
    FEATURES,
    METHOD,
    TRAINABLE_PARAMS,
    TRAINING,
    WARM_FROM,
    choice_of,
)
from search.surrogate.observation import Observation, recorded_features
from spaces.errors import RanksweepError
from spaces.planner import Planner


def complete_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those that were trained from the base to their end."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and CHOICE in trial.user_attrs
        and not trial.user_attrs.keys() & {DUPLICATE_OF, WARM_FROM}
    ]


def observations(
    trials: Iterable[FrozenTrial], planner: Planner | None = None
) -> list[Observation]:
    """What complete trials tell, one that was answered from another or started warm left out.

    The features of one that an older ranksweep has trained are those of its plan, which `planner`
    makes again; where it cannot, or there is none, the trial is left out.
    """
    found = []
    for trial in complete_trials(trials):
        attributes = trial.user_attrs
        features = attributes.get(FEATURES) or _features(trial, planner)
        if features is None:
            continue
        found.append(
            Observation(
                features=features,
                method=attributes[METHOD],
                value=float(trial.values[0]),
                params=int(attributes[TRAINABLE_PARAMS]),
                repeat_of=attributes[TRAINING],
            )
        )
    return found


def _features(trial: FrozenTrial, planner: Planner | None) -> dict[str, float] | None:
    if planner is None:
        return None
    try:
        choice = choice_of(trial)
        return recorded_features(planner.plan(choice), choice.learning_rate, planner.profile)
    except RanksweepError:  # of another version
        return None
