"""A long search does the same as a short one, without looking at all its trials each time."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.draft import NEWEST, Snapshot
from search.study import (
    ARM,
    CHOICE,
    DUPLICATE_OF,
    METHOD,
    SEED,
    TRAINABLE_PARAMS,
    TRAINING,
    best_of_each_method,
    make_sampler,
    worth_keeping,
)


def study_of(count: int, seed: int, mode: str = "max") -> optuna.Study:
    """A study of some arms, with ties, repetitions, duplicates and trials that are not complete."""
    rng = np.random.default_rng(seed)
    trials: list[FrozenTrial] = []
    first: dict[int, FrozenTrial] = {}
    for number in range(count):
        training = int(rng.integers(0, count))
        arm = f"arm{training % 3}"
        attributes = {
            ARM: arm, METHOD: arm, CHOICE: "{}", SEED: number, TRAINING: str(training),
            TRAINABLE_PARAMS: int(training % 4),
        }  # fmt: skip
        earlier = first.get(training)
        if earlier and earlier.state == TrialState.COMPLETE and rng.random() < 0.3:
            attributes |= {DUPLICATE_OF: earlier.user_attrs[SEED], ARM: f"arm{rng.integers(0, 3)}"}
        state = TrialState.COMPLETE if rng.random() < 0.8 else TrialState.PRUNED
        value = float(rng.integers(0, 8)) / 8
        trial = create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params={"x": rng.random()},
            distributions={"x": FloatDistribution(0, 1)},
            user_attrs=attributes,
        )
        first.setdefault(training, trial)
        trials.append(trial)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    study.add_trials(trials)
    return study


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(20))
def test_the_trials_worth_keeping_are_the_best_of_each_method(seed: int, mode: str) -> None:
    study = study_of(40, seed, mode)
    assert worth_keeping(study, mode) == {r["number"] for r in best_of_each_method(study, mode)}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_a_long_study_a_sampler_hears_of_the_newest_and_takes_the_same_for_good(
    mode: str,
) -> None:
    study = study_of(NEWEST + 300, 0, mode)
    trials = study.get_trials(deepcopy=False)
    heard = Snapshot(trials, study.directions)._study.get_trials(deepcopy=False)

    assert [t.number for t in heard] == sorted(t.number for t in heard)
    assert heard[-NEWEST:] == trials[-NEWEST:]
    assert len(heard) <= NEWEST + 25
    good, _ = _split_trials(study, trials, default_gamma(len(trials)))
    taken, _ = _split_trials(study, list(heard), default_gamma(len(heard)))
    assert sorted(t.values[0] for t in taken) == sorted(t.values[0] for t in good)


def test_a_short_study_a_sampler_hears_of_whole() -> None:
    study = study_of(60, 1)
    trials = study.get_trials(deepcopy=False)
    assert Snapshot(trials, study.directions)._study.get_trials(deepcopy=False) == trials


def test_one_trial_of_each_kind_tells_a_sampler_the_groups_of_parameters() -> None:
    """The same points are drawn as Optuna's own study would have drawn."""
    kinds = [("a", "b"), ("a", "c"), ("d",)]
    study = optuna.create_study(direction="maximize", sampler=make_sampler("tpe", 3))
    rng = np.random.default_rng(0)
    for number in range(60):
        names = kinds[number % 3]
        study.add_trial(
            create_trial(
                value=float(rng.random()),
                params={name: float(rng.random()) for name in names},
                distributions={name: FloatDistribution(0, 1) for name in names},
            )
        )
    trials = study.get_trials(deepcopy=False)
    draft = Snapshot(trials, study.directions).draw(make_sampler("tpe", 3), {})
    drawn = {name: draft.suggest_float(name, 0, 1) for name in ("a", "b")}
    trial = study.ask()
    assert drawn == {name: trial.suggest_float(name, 0, 1) for name in ("a", "b")}
