"""An answer that holds: what is repeated, what is taken for best, and that MLflow agrees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import optuna
import pytest

from search.queries.best import best
from search.queries.sweep_state import best_of_arms
from search.study.ranking import (
    WorthKeeping,
    best_of_each_method,
    next_repeat,
    pareto_front,
    ranked,
)
from search.study.standing import Standings
from search.study.study import TRAINING
from search.study.trial_list import trial_rows
from search.tracking.runs import RecordedRuns
from tests.search.cliff import ACCURACY, METHODS, Cliff, Kept, answers, trial_of
from tests.search.queries.test_best import Records
from tests.search.toy_search import searcher_over, toy_space, toy_study


def test_beside_a_cliff_what_holds_is_chosen_and_not_what_was_lucky_once() -> None:
    found = answers(60, 24, 2, 3)
    lucky, held = (Kept.of(found, rule, Cliff.noise) for rule in ("by_value", "by_holding"))
    print(f"the best mean, within the noise: by value {lucky}; by what holds {held}")
    assert held.within >= 0.7
    assert held.within > lucky.within + 0.1
    assert held.lacks < lucky.lacks / 2


def test_without_a_cliff_and_without_noise_nothing_is_lost_by_it() -> None:
    for each in answers(20, 24, 2, 3, has_cliff=False, noise=0.0):
        assert each.by_holding == each.best


def study_of(*trials: optuna.trial.FrozenTrial) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        study.add_trial(trial)
    return study


def repeated(study: optuna.Study, values: dict[str, list[float]], top: int, seeds: int) -> str:
    """The trainings in the order in which they are repeated, each with its next value."""
    order, standings = "", Standings(study)
    while (again := next_repeat(standings.now(), ACCURACY, top, seeds)) is not None:
        training = again[0].user_attrs[TRAINING]
        order += training
        value = values[training].pop(0)
        method = again[0].user_attrs["method"]
        study.add_trial(trial_of(method, training, value, value < 0.52, again[1]))
    return order


@pytest.mark.parametrize(
    ("again", "order"),
    [
        # The leader holds; then LoRA, with which all are compared; then the next best.
        ({"a": [0.89, 0.90], "l": [0.80, 0.80], "b": [0.85, 0.85]}, "aallbb"),
        # The leader falls at once, and the next has its looks.
        ({"a": [0.50, 0.50], "l": [0.80, 0.80], "b": [0.86, 0.85], "c": [0.8]}, "abbllc"),
        # All leaders fall: the last look is LoRA's.
        ({"a": [0.5], "b": [0.5], "c": [0.5], "d": [0.5], "e": [0.5], "l": [0.8]}, "abcdel"),
    ],
)
def test_each_repetition_goes_to_the_leader_as_it_then_is_and_lora_has_a_look(
    again: dict[str, list[float]], order: str
) -> None:
    firsts = {"a": 0.9, "b": 0.86, "c": 0.85, "d": 0.84, "e": 0.83, "l": 0.80}
    study = study_of(
        *(trial_of("lora" if name == "l" else "taso", name, v) for name, v in firsts.items())
    )
    assert repeated(study, again, top=3, seeds=2) == order


def test_of_two_objectives_the_front_is_looked_at_first() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for name, value, params in (("a", 0.9, 900), ("b", 0.89, 950), ("c", 0.7, 10)):
        trial = trial_of("taso", name, value, params=params)
        trial.values = [value, float(params)]
        study.add_trial(trial)
    order, standings = "", Standings(study)
    while (again := next_repeat(standings.now(), ACCURACY, 2, 1)) is not None:
        order += again[0].user_attrs[TRAINING]
        trial = trial_of("taso", order[-1], again[0].values[0], repeat=again[1])
        trial.values = again[0].values
        study.add_trial(trial)
    assert order == "ac"


def test_what_has_collapsed_is_on_no_front_however_small() -> None:
    study = study_of(
        trial_of("lora", "a", 0.9, params=100),
        trial_of("lora", "b", 0.8, params=50),
        trial_of("lora", "c", 0.507, collapsed=True, params=10),
    )
    assert [row.number for row in pareto_front(study, ACCURACY)] == [1, 0]
    alone = study_of(trial_of("lora", "c", 0.507, collapsed=True, params=10))
    assert [row.number for row in pareto_front(alone, ACCURACY)] == [0]


def test_the_runner_up_has_its_weights_until_no_trial_can_make_the_best_fall() -> None:
    study = study_of(trial_of("lora", "a", 0.9), trial_of("lora", "b", 0.8))
    study.add_trial(trial_of("lora", "c", 0.7))
    worth = WorthKeeping(study, ACCURACY, spare=1)
    assert worth() == {0, 1}
    assert worth.leader is not None
    assert worth.leader.number == 0
    study.add_trial(trial_of("lora", "a", 0.5, collapsed=True, repeat=1))
    assert worth() == {0, 1}
    assert worth.leader.number == 1
    assert worth.no_longer() == {0}


def test_mlflow_alone_ranks_as_the_study_does(database: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    records, trials = Records(database), []
    for training in range(9):
        method = METHODS[training % 3]
        level = rng.uniform(0.7, 0.9)
        choice = {"method": method, "learning_rate": 1e-4 * (training + 1)}
        params = int(rng.integers(1, 4)) * 100
        for repeat in range(1 + int(rng.integers(0, 3))):
            value, collapsed = level + rng.normal(0, 0.03), bool(rng.random() < 0.15)
            trials.append(
                trial_of(method, str(training), value, collapsed, repeat or None, params, choice)
            )
            run = records.trial(
                value,
                params,
                metrics={"predicted_classes": 1.0 if collapsed else 3.0},
                choice=json.dumps(choice),
                method=method,
                repeat=str(repeat) if repeat else None,
                number=str(len(trials) - 1),
            )
            records.client.set_tag(run, "mlflow.parentRunId", "sweep")
    study = study_of(*trials)
    found = ranked(study.get_trials(deepcopy=False), ACCURACY)
    wanted = [found.row(each, each.first) for each in found.trainings]

    rows = best(database, "movie", top=99)
    rates = [row.choice["learning_rate"] for row in rows]
    assert rates == [row.choice["learning_rate"] for row in wanted]
    assert [row.holds for row in rows] == pytest.approx([row.holds for row in wanted])
    assert [(row.seeds, row.collapsed) for row in rows] == [
        (row.seeds, row.collapsed) for row in wanted
    ]
    assert any(row.collapsed for row in wanted)
    assert not wanted[0].collapsed
    # With one method asked for, the noise is still that of the whole sweep.
    own = best(database, "movie", method="lora", top=99)
    assert own == [row for row in rows if row.method == "lora"]

    runs = RecordedRuns(database)
    children = runs.search({"kind": "trial"}, runs.experiments())
    children.sort(key=lambda run: run.number or 0)
    of_arms = best_of_arms(children, ACCURACY)
    of_study = best_of_each_method(study, ACCURACY)
    assert [row.number for row in of_arms] == [row.number for row in of_study]
    assert [row.holds for row in of_arms] == pytest.approx([row.holds for row in of_study])


def test_a_trial_that_ends_with_one_class_alone_is_marked_in_the_study(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, toy_space("lora"), trials=3, epochs=2)
    for number, classes in enumerate([(1.0, 1.0), (1.0, 2.0), (2.0, None)]):
        searcher.suggest(f"t{number}")
        for epoch, told in enumerate(classes, start=1):
            report = {"epoch": epoch, "accuracy": 0.9 - 0.1 * number, "dev_loss": 1.0}
            report |= {} if told is None else {"predicted_classes": told}
            searcher.on_trial_result(f"t{number}", report)
        searcher.on_trial_complete(f"t{number}", report)
    assert [row.collapsed for row in trial_rows(study)] == [True, False, False]
    (best_one,) = best_of_each_method(study, ACCURACY)
    assert (best_one.number, best_one.value) == (1, 0.8)
    every = best_of_each_method(study, ACCURACY, top=3)
    assert [(row.number, row.collapsed) for row in every] == [(1, 0), (2, 0), (0, 1)]
