"""A long search does the same as a short one, without looking at all its trials each time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.objective import Mode, Objective
from search.study.ranking import WorthKeeping, best_of_each_method, pareto_front, ranked
from search.study.sampling import NEWEST, Snapshot
from search.study.standing import Standings
from search.study.study import (
    ARM,
    CHOICE,
    DUPLICATE_OF,
    INTERRUPTED,
    METHOD,
    REJECTED,
    SEED,
    TRAINABLE_PARAMS,
    TRAINING,
    make_sampler,
)
from tests.search.toy_search import ACCURACY, handed_out

LORA = '{"method": "lora"}'


def study_of(count: int, seed: int, mode: str = "max") -> optuna.Study:
    """A study of some arms, with ties, repetitions, duplicates and trials that are not complete."""
    rng = np.random.default_rng(seed)
    trials: list[FrozenTrial] = []
    first: dict[int, FrozenTrial] = {}
    for number in range(count):
        training = int(rng.integers(0, count))
        arm = f"arm{training % 3}"
        attributes = {
            ARM: arm, METHOD: arm, CHOICE: LORA, SEED: number, TRAINING: str(training),
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


def empty_study(mode: str = "max", objectives: int = 1) -> optuna.Study:
    directions = ["maximize" if mode == "max" else "minimize", "minimize"][:objectives]
    return optuna.create_study(directions=directions)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("seed", range(20))
def test_the_trials_worth_keeping_are_the_best_of_each_method(seed: int, mode: Mode) -> None:
    study, objective = study_of(40, seed, mode), Objective("accuracy", mode)
    best = {row.number for row in best_of_each_method(study, objective)}
    assert WorthKeeping(study, objective)() == best


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_asked_after_each_trial_the_same_are_worth_keeping_as_asked_at_once(
    seed: int, objectives: int
) -> None:
    """Where no choice is trained twice; some trials end after later ones."""
    rng = np.random.default_rng(seed)
    study = empty_study(objectives=objectives)
    worth, running = WorthKeeping(study, ACCURACY), []
    for number in range(30):
        params, arm = int(rng.integers(1, 9)), f"arm{rng.integers(0, 3)}"
        trial = study.ask()
        told = {ARM: arm, METHOD: arm, CHOICE: LORA, SEED: 0, TRAINING: str(number)}
        for key, value in {**told, TRAINABLE_PARAMS: params}.items():
            trial.set_user_attr(key, value)
        running.append((trial, [float(rng.integers(0, 8)), float(params)][:objectives]))
        if len(running) == 3:
            study.tell(*running.pop(int(rng.integers(0, 3))))
        kept = worth()
        assert kept == WorthKeeping(study, ACCURACY)()
        if objectives == 2:
            complete = ranked(study.get_trials(), ACCURACY).trainings
            front = {
                one.first.number
                for one in complete
                if not any(
                    (two.seeds.mean >= one.seeds.mean and two.params < one.params)
                    or (two.seeds.mean > one.seeds.mean and two.params <= one.params)
                    or ((two.seeds.mean, two.params) == (one.seeds.mean, one.params)
                    and two.first.number < one.first.number)
                    for two in complete
                )
            }  # fmt: skip
            assert front <= kept
            rows = pareto_front(study, ACCURACY)
            assert {row.number for row in rows} == front
            counts = [row.trainable_params for row in rows]
            assert counts == sorted(counts)


def test_weights_that_are_held_are_not_dropped_for_weights_that_are_gone() -> None:
    """The best choice turns out worse on another seed; the second best's were dropped long ago."""
    study = empty_study()
    worth = WorthKeeping(study, ACCURACY)
    for training, value, kept in (("a", 0.8, {0}), ("b", 0.9, {1}), ("b", 0.3, {1})):
        told = {ARM: "lora", METHOD: "lora", CHOICE: LORA, SEED: 0, TRAINABLE_PARAMS: 1}
        study.add_trial(create_trial(value=value, user_attrs={**told, TRAINING: training}))
        assert worth() == kept


@pytest.mark.parametrize("seed", range(10))
def test_asked_after_each_trial_a_study_stands_as_it_does_asked_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    study = empty_study()
    standings, running = Standings(study), []
    for number in range(60):
        trial = study.ask()
        arm, training = f"arm{rng.integers(0, 3)}", str(rng.integers(0, 40))
        told = {ARM: arm, CHOICE: training, SEED: int(rng.integers(0, 2)), TRAINING: training}
        for mark in (DUPLICATE_OF, REJECTED, INTERRUPTED):
            if rng.random() < 0.1:
                told[mark] = 0
        for key, value in told.items():
            trial.set_user_attr(key, value)
        running.append(trial)
        if len(running) == 4:
            ended = running.pop(int(rng.integers(0, 4)))
            study.tell(ended, *([1.0] if rng.random() < 0.7 else [None, TrialState.FAIL]))
        if number % 3 == 0:
            now, once = standings.now(), Standings(study).now()
            assert now == once
            counted = handed_out(study)
            assert now.trials == counted
            assert now.handed == len(counted)
            assert now.counts == Counter(trial.user_attrs[ARM] for trial in counted)
            good = [trial for trial in counted if trial.state != TrialState.FAIL]
            assert now.trainings.keys() == {
                (trial.user_attrs[TRAINING], trial.user_attrs[SEED]) for trial in good
            }
            assert now.unrepeated_run == any(t.state == TrialState.RUNNING for t in counted)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_a_long_study_a_sampler_hears_of_the_newest_and_takes_the_same_for_good(
    mode: str,
) -> None:
    study = study_of(NEWEST + 300, 0, mode)
    trials = study.get_trials(deepcopy=False)
    heard = Snapshot(trials, study.directions).study.get_trials(deepcopy=False)

    assert [t.number for t in heard] == sorted(t.number for t in heard)
    assert heard[-NEWEST:] == trials[-NEWEST:]
    assert len(heard) <= NEWEST + 25
    good, _ = _split_trials(study, trials, default_gamma(len(trials)))
    taken, _ = _split_trials(study, list(heard), default_gamma(len(heard)))
    assert sorted(t.values[0] for t in taken) == sorted(t.values[0] for t in good)


def test_a_short_study_a_sampler_hears_of_whole() -> None:
    study = study_of(60, 1)
    trials = study.get_trials(deepcopy=False)
    assert Snapshot(trials, study.directions).study.get_trials(deepcopy=False) == trials


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
    point = Snapshot(trials, study.directions).draw(make_sampler("tpe", 3), {})
    drawn = {name: point.suggest_float(name, 0, 1) for name in ("a", "b")}
    trial = study.ask()
    assert drawn == {name: trial.suggest_float(name, 0, 1) for name in ("a", "b")}
