"""The searcher, driven as Tune drives it: every Optuna state says what happened to its trial."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search.study.ranking import best_of_each_method
from search.study.sampling import Snapshot
from search.study.standing import interrupted
from search.study.study import directions, make_sampler, open_study, states_of
from search.study.trial_list import trial_rows
from search.tuning.searcher import StudySearcher
from spaces.errors import ConfigError
from spaces.methods.registry import make_plan, parse_choice
from spaces.search_space import SearchSpace
from tests.search.toy_search import (
    ACCURACY,
    TARGETS,
    handed_out,
    searcher_over,
    toy_profile,
    toy_space,
    toy_study,
)

METHODS = ("lora", "pilora", "taso", "sensitivity", "joint")
PROFILE = toy_profile()


def row(epoch: int, accuracy: float, **more: float) -> dict[str, Any]:
    return {"epoch": epoch, "epochs_done": epoch, "accuracy": accuracy, "dev_loss": 0.5, **more}


def finish(searcher: StudySearcher, trial_id: str, accuracy: float = 0.8) -> None:
    for epoch in (1, 2):
        searcher.on_trial_result(trial_id, row(epoch, accuracy / 2))
    searcher.on_trial_result(trial_id, row(3, accuracy))
    searcher.on_trial_complete(trial_id, row(3, accuracy))


def asked(searcher: StudySearcher, trial_id: str) -> dict[str, Any]:
    """What the searcher gives a trial to train."""
    given = searcher.suggest(trial_id)
    assert isinstance(given, dict)
    return given


def run_all(searcher: StudySearcher, accuracy: float = 0.8) -> list[dict[str, Any]]:
    """Hand every trial out and finish it; returns the suggestions."""
    given: list[Any] = []
    for number in range(1000):
        suggested = searcher.suggest(f"t{number}")
        if suggested == Searcher.FINISHED:
            return given
        given.append(suggested)
        finish(searcher, f"t{number}", accuracy)
    raise AssertionError("the searcher never finished")


def test_equal_allocation_gives_every_method_the_same_number_in_the_order_of_the_space(
    tmp_path: Path,
) -> None:
    given = run_all(searcher_over(toy_study(tmp_path), trials=12))
    methods = [suggested["choice"]["method"] for suggested in given]
    assert methods[:5] == list(METHODS)
    assert Counter(methods) == {"lora": 3, "pilora": 3, "taso": 2, "sensitivity": 2, "joint": 2}


def test_free_allocation_leaves_the_method_to_the_sampler(tmp_path: Path) -> None:
    given = run_all(searcher_over(toy_study(tmp_path), trials=20, allocation="free"))
    methods = [suggested["choice"]["method"] for suggested in given]
    assert len(methods) == 20
    assert methods[:5] != list(METHODS)
    assert len(set(methods)) > 2


def test_every_arm_is_given_as_many_trials_as_a_method(tmp_path: Path) -> None:
    space = toy_space("taso", taso={"importance": ["sensitivity", "random"], "rounds": [1, 2]})
    study = toy_study(tmp_path)
    searcher = searcher_over(study, space, trials=15, arms=("importance", "rounds"))
    given = run_all(searcher)
    divided = [
        f"taso importance={importance} rounds={rounds}"
        for importance in ("sensitivity", "random")
        for rounds in (1, 2)
    ]
    assert searcher.counts == {"lora": 3, **dict.fromkeys(divided, 3)}
    for suggested in given:
        choice, trial = suggested["choice"], study.trials[suggested["number"]]
        if choice["method"] == "taso":
            shown = f"taso importance={choice['importance']} rounds={choice['rounds']}"
            assert trial.user_attrs["arm"] == shown
        else:
            assert trial.user_attrs["arm"] == "lora"
    again = searcher_over(study, space, trials=20, arms=("importance", "rounds"))
    assert again.counts == searcher.counts


RATES = [1e-3, 2e-3, 5e-3]


def grid_space(**pilora: Any) -> SearchSpace:
    """LoRA of one rank, and PiLoRA with what is given of it, at three learning rates."""
    partition = {"rule": "cumulative", "threshold": 0.5}
    fixed = {"rank": 4, "supplementary_rank": 1, "partition": partition}
    written = {"lora": {"rank": 4}, "pilora": {**fixed, **pilora}}
    space = SearchSpace.parse({"learning_rate": RATES, "methods": written})
    return space.fitted(TARGETS, (5.0, 10.0))


def rates_of_arms(study: Any) -> dict[str, list[float]]:
    """What was trained or answered: arm -> its learning rates, sorted."""
    rates: dict[str, list[float]] = {}
    for trial in study.trials:
        if not trial.user_attrs.keys() & {"ranksweep_interrupted", "ranksweep_rejected"}:
            choice = json.loads(trial.user_attrs["choice"])
            rates.setdefault(trial.user_attrs["arm"], []).append(choice["learning_rate"])
    return {arm: sorted(each) for arm, each in rates.items()}


def test_a_grid_gives_every_arm_the_same_learning_rates_once_each(tmp_path: Path) -> None:
    study = toy_study(tmp_path, sampler="grid")
    space = grid_space(supplementary_rank=[0, 1, 2])
    arms = ("supplementary_rank",)
    given = run_all(searcher_over(study, space, trials=12, sampler="grid", arms=arms))
    names = ["lora", *(f"pilora supplementary_rank={rank}" for rank in (0, 1, 2))]
    assert rates_of_arms(study) == dict.fromkeys(names, RATES)
    assert {each["seed"] for each in given} == {0}
    assert [each["choice"]["learning_rate"] for each in given[:4]] == [1e-3] * 4


def test_points_of_a_grid_that_are_the_same_training_are_answered_and_the_grid_is_walked(
    tmp_path: Path,
) -> None:
    study = toy_study(tmp_path, sampler="grid")
    # A partition into all rows is LoRA.
    space = grid_space(partition={"rule": ["cumulative", "all"], "threshold": 0.5})
    arms = ("partition.rule",)
    searcher = searcher_over(study, space, trials=9, sampler="grid", arms=arms)
    assert len(run_all(searcher)) == 6
    assert searcher.handed == searcher.wanted == 6
    assert rates_of_arms(study) == dict.fromkeys(
        ["lora", "pilora partition.rule=cumulative", "pilora partition.rule=all"], RATES
    )


def test_a_point_of_a_grid_waits_for_the_same_training_that_runs(tmp_path: Path) -> None:
    study = toy_study(tmp_path, sampler="grid")
    space = grid_space(partition={"rule": "all"})
    searcher = searcher_over(study, space, trials=6, sampler="grid")
    for number in range(3):
        assert asked(searcher, f"t{number}")["choice"]["method"] == "lora"
    assert searcher.suggest("t3") is None
    finish(searcher, "t0")
    searcher.on_trial_complete("t1", error=True)
    assert asked(searcher, "t3")["choice"]["learning_rate"] == RATES[1]
    finish(searcher, "t2")
    finish(searcher, "t3")
    assert searcher.suggest("t4") == Searcher.FINISHED
    assert rates_of_arms(study) == {"lora": RATES, "pilora": RATES}


def test_a_grid_goes_on_with_what_is_left_and_spends_no_trial_twice(tmp_path: Path) -> None:
    study = toy_study(tmp_path, sampler="grid")
    space = grid_space(supplementary_rank=[0, 1])
    settings: dict[str, Any] = {"trials": 9, "sampler": "grid", "arms": ("supplementary_rank",)}
    searcher = searcher_over(study, space, **settings)
    asked(searcher, "t0")
    searcher.on_trial_complete("t0", error=True)
    for number in range(1, 4):
        asked(searcher, f"t{number}")
        finish(searcher, f"t{number}")
    asked(searcher, "t4")
    searcher.cancel("t4", "Ctrl-C")
    again = interrupted(study)
    rest = run_all(searcher_over(study, space, enqueue=again, **settings))
    assert len(rest) == 9 - 4
    assert rates_of_arms(study) == dict.fromkeys(
        ["lora", "pilora supplementary_rank=0", "pilora supplementary_rank=1"], RATES
    )


def test_the_points_of_a_grid_beyond_the_limit_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    study = toy_study(tmp_path, sampler="grid")
    space = SearchSpace.parse({"learning_rate": RATES, "methods": {"lora": {"rank": [1, 8]}}})
    searcher = searcher_over(
        study, space, trials=6, sampler="grid", max_params=4 * 40, say=said.append
    )
    assert {each["choice"]["rank"] for each in run_all(searcher)} == {1}
    assert searcher.handed == searcher.wanted == 3
    assert said == ["a point of the grid is left out: lora: 1280 parameters, max_params is 160"] * 3


def test_enqueued_choices_come_first_and_count_for_their_method(tmp_path: Path) -> None:
    space = toy_space()
    first = [space.default_choice("taso"), space.default_choice("lora")]
    searcher = searcher_over(toy_study(tmp_path), space, trials=7, enqueue=[*first, first[0]])
    given = run_all(searcher)
    assert [suggested["choice"] for suggested in given[:2]] == [c.as_dict() for c in first]
    assert searcher.counts == {"taso": 1, "lora": 2, "pilora": 2, "sensitivity": 1, "joint": 1}


def test_every_trial_carries_its_choice_its_method_and_its_plan(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    given = run_all(searcher_over(study, trials=5))
    for suggested in given:
        trial = study.trials[suggested["number"]]
        choice = parse_choice(suggested["choice"])
        plan = make_plan(choice, TARGETS, PROFILE)
        assert json.loads(trial.user_attrs["choice"]) == suggested["choice"]
        assert trial.user_attrs["method"] == choice.method
        assert trial.user_attrs["trainable_params"] == plan.trainable_params
        assert trial.user_attrs["plan_digest"] == plan.digest


@pytest.mark.parametrize(("sampler", "allocation"), [("tpe", "free"), ("random", "equal")])
def test_no_trial_of_any_method_is_ever_beyond_max_params(
    tmp_path: Path, sampler: str, allocation: str
) -> None:
    # Half of the space and more is beyond it, the default of every method but lora included.
    study = toy_study(tmp_path, sampler=sampler)
    searcher = searcher_over(study, trials=50, max_params=330, allocation=allocation)
    given = run_all(searcher)
    counts = [
        make_plan(parse_choice(suggested["choice"]), TARGETS, PROFILE).trainable_params
        for suggested in given
    ]
    assert len(counts) == 50
    assert max(counts) <= 330
    assert {suggested["choice"]["method"] for suggested in given} == set(METHODS)
    # Optuna has no other trials, and each has its distance to the bound as a constraint.
    assert len(study.trials) == 50
    assert [t.constraints for t in study.trials] == [{"trainable_params": n - 330} for n in counts]
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_tpe_learns_from_what_is_refused_where_the_bound_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four ranks of sixteen fit; even draws need four tries for a choice.
    drawn: list[tuple[Any, ...]] = []
    draw = Snapshot.draw

    def counted(*arguments: Any) -> Any:
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(Snapshot, "draw", counted)
    searcher = searcher_over(
        toy_study(tmp_path),
        toy_space("lora", lora={"rank": {"low": 1, "high": 16}}),
        trials=40,
        max_params=4 * 4 * (24 + 16),
    )
    tries = []
    for number in range(40):
        before = len(drawn)
        suggested = asked(searcher, f"t{number}")
        tries.append(len(drawn) - before)
        assert suggested["choice"]["rank"] <= 4
        finish(searcher, f"t{number}", 0.5)  # no rank is better than another
    assert sum(tries[:10]) / 10 > 2.5
    assert sum(tries[20:]) / 20 < 2


def test_a_space_that_is_mostly_too_large_falls_back_to_the_smallest_plan(tmp_path: Path) -> None:
    # One rank of sixteen fits, and a random sampler does not learn it.
    space = toy_space("lora", lora={"rank": list(range(1, 17))})
    study = toy_study(tmp_path, sampler="random")
    given = run_all(searcher_over(study, space, trials=4, max_params=1 * 4 * (24 + 16)))
    assert [suggested["choice"]["rank"] for suggested in given] == [1] * 4
    assert len({suggested["choice"]["learning_rate"] for suggested in given}) == 4
    assert len(study.trials) == 4


def test_a_method_that_cannot_fit_is_closed_and_the_others_take_its_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Four modules of rank 1 have 4 x (24 + 16) = 160 parameters, of rank 2 twice that.
    space = toy_space("lora", "sensitivity", sensitivity={"mean_rank": [2, 4]})
    searcher = searcher_over(toy_study(tmp_path), space, trials=6, max_params=160)
    given = run_all(searcher)
    assert [suggested["choice"]["method"] for suggested in given] == ["lora"] * 6
    assert "space.methods.sensitivity: takes no further part" in caplog.text
    assert "320 parameters, max_params is 160" in str(searcher.shortfall)


def test_a_search_that_nothing_fits_ends_and_says_why(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, max_params=3)
    assert searcher.suggest("t0") == Searcher.FINISHED
    assert searcher.handed == 0
    for method in METHODS:
        assert f"space.methods.{method}: takes no further part" in str(searcher.shortfall)
    assert study.trials == []


def test_a_method_that_has_no_plan_is_closed_with_the_reason(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    # The profile's masks are of 5 and 10 percent, and this space is not fitted to them.
    space = SearchSpace.parse({"methods": {"lora": {"rank": [2, 4]}, "taso": {"top_percent": 7}}})
    searcher = searcher_over(study, space, trials=4)
    given = run_all(searcher)
    assert [suggested["choice"]["method"] for suggested in given] == ["lora"] * 4
    assert "space.methods.taso: takes no further part" in str(searcher.shortfall)
    assert "top_percent: 7 is not in the profile's grid" in str(searcher.shortfall)
    assert len(study.trials) == 4


def test_a_full_trial_is_complete_with_its_last_value_and_its_curve(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, trials=1)
    run_all(searcher, accuracy=0.75)
    (trial,) = study.trials
    assert trial.state == TrialState.COMPLETE
    assert trial.value == 0.75
    assert trial.intermediate_values == {1: 0.375, 2: 0.375, 3: 0.75}
    assert searcher.ended[0].state == "complete"
    assert searcher.ended[0].values == (0.75,)


def test_the_result_that_a_scheduler_stops_at_is_kept(tmp_path: Path) -> None:
    # Tune does not call on_trial_result for the result at which the scheduler says STOP.
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    searcher.suggest("t0")
    searcher.on_trial_result("t0", row(1, 0.3))
    searcher.on_trial_complete("t0", row(2, 0.4))
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.3, 2: 0.4}
    assert trial.user_attrs["reason"] == "stopped after epoch 2 of 3"


@pytest.mark.parametrize(
    ("epochs", "state", "reason"),
    [(3, "pruned", "stopped after epoch 3 of 6"), (6, "complete", None)],
)
def test_a_trial_of_full_stages_is_complete_after_the_epochs_of_all_of_them(
    tmp_path: Path, epochs: int, state: str, reason: str | None
) -> None:
    full = {"method": "taso", "stage_steps": "full", "learning_rate": 1e-3, "retention": 0.3}
    space = toy_space("taso", taso={"stage_steps": "full", "rounds": 1})
    searcher = searcher_over(toy_study(tmp_path), space, enqueue=[parse_choice(full)])
    assert asked(searcher, "t0")["choice"]["stage_steps"] == "full"
    contender = searcher.contender("t0")
    assert contender is not None
    assert (contender.arm, contender.stages, contender.length) == ("taso", 2, 2)
    for epoch in range(1, epochs + 1):
        searcher.on_trial_result("t0", row(epoch, 0.1 * epoch))
    searcher.on_trial_complete("t0", row(epochs, 0.1 * epochs))
    ended = searcher.ended_trial("t0")
    assert ended is not None
    assert (ended.state, ended.reason) == (state, reason)


def test_full_length_that_a_scheduler_calls_stopped_is_complete(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    searcher.suggest("t0")
    searcher.on_trial_result("t0", row(2, 0.3))
    searcher.on_trial_complete("t0", row(3, 0.4))
    assert study.trials[0].state == TrialState.COMPLETE
    assert study.trials[0].value == 0.4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_last_value_that_is_not_finite_fails(tmp_path: Path, value: float) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    searcher.suggest("t0")
    finish(searcher, "t0", accuracy=value)
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == f"accuracy is {value} after epoch 3"


def test_nan_on_the_way_does_not_fail_a_trial_that_recovers(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    searcher.suggest("t0")
    searcher.on_trial_result("t0", row(1, math.nan))
    searcher.on_trial_result("t0", row(2, 0.4))
    searcher.on_trial_complete("t0", row(3, 0.6))
    assert study.trials[0].value == 0.6


def test_an_error_fails_with_the_text_that_the_driver_reads(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    searcher.read_error = lambda trial_id: f"{trial_id}: out of memory"
    searcher.suggest("t0")
    searcher.on_trial_result("t0", row(1, 0.3))
    searcher.on_trial_complete("t0", error=True)
    (trial,) = study.trials
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "t0: out of memory"
    assert trial.intermediate_values == {1: 0.3}


def test_two_objectives_keep_the_curve_in_attributes_and_tell_both_values(tmp_path: Path) -> None:
    objectives = ("accuracy", "trainable_params")
    study = toy_study(tmp_path, objectives)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    searcher = searcher_over(study, objectives=objectives)
    for trial_id in ("full", "stopped", "nan"):
        searcher.suggest(trial_id)
    finish(searcher, "full", 0.7)
    searcher.on_trial_result("stopped", row(1, 0.2))
    searcher.on_trial_complete("stopped", row(1, 0.2))
    finish(searcher, "nan", math.nan)
    full, stopped, nan = study.trials
    assert full.state == TrialState.COMPLETE
    assert full.values == [0.7, full.user_attrs["trainable_params"]]
    assert full.user_attrs["curve"]["3"] == {"accuracy": 0.7, "dev_loss": 0.5}
    assert stopped.state == TrialState.PRUNED
    assert stopped.user_attrs["curve"] == {"1": {"accuracy": 0.2, "dev_loss": 0.5}}
    assert nan.state == TrialState.FAIL
    assert not any(trial.intermediate_values for trial in study.trials)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "trainable_params")])
def test_samplers_go_past_their_start_up_with_every_kind_of_end(
    tmp_path: Path, sampler: str, objectives: tuple[str, ...]
) -> None:
    study = toy_study(tmp_path, objectives, sampler)
    searcher = searcher_over(study, objectives=objectives, trials=24, max_params=1000)
    for number in range(24):
        suggested = asked(searcher, f"t{number}")
        if number % 4 == 1:
            searcher.on_trial_complete(f"t{number}", row(1, 0.2))
        elif number % 4 == 2:
            searcher.on_trial_complete(f"t{number}", error=True)
        else:
            finish(searcher, f"t{number}", -abs(math.log10(suggested["choice"]["learning_rate"])))
    counted = Counter(trial.state for trial in handed_out(study))
    assert counted == {TrialState.COMPLETE: 12, TrialState.PRUNED: 6, TrialState.FAIL: 6}


def test_tpe_learns_the_learning_rate(tmp_path: Path) -> None:
    # The best value is at 3e-3; after the start-up TPE proposes nearer to it than chance does.
    study = toy_study(tmp_path)
    searcher = searcher_over(study, toy_space("lora"), trials=40)
    distances = []
    for number in range(40):
        suggested = asked(searcher, f"t{number}")
        distance = abs(math.log10(suggested["choice"]["learning_rate"] / 3e-3))
        distances.append(distance)
        finish(searcher, f"t{number}", 1 - distance)
    assert sum(distances[20:]) / 20 < 0.5 * sum(distances[:10]) / 10


LORA = {"method": "lora", "rank": 2, "alpha": 16.0, "learning_rate": 1e-3}
#: Choices of other methods that come to the same plan as LORA, and what their space must hold.
SAME_AS_LORA = {
    "pilora": {
        "rank": 2,
        "supplementary_rank": 1,
        "partition": {"rule": "all"},
        "alpha": 16.0,
    },
    "sensitivity": {"mean_rank": 2, "allocation": "uniform", "alpha": 16.0},
    "joint": {
        "mean_rank": 2,
        "allocation": "uniform",
        "partition": {"rule": "all"},
        "retention": 1.0,
        "supplementary_rank": 1,
        "alpha": 16.0,
    },
}


@pytest.mark.parametrize("method", SAME_AS_LORA)
def test_another_method_s_choice_of_the_same_plan_is_answered_from_the_finished_trial(
    tmp_path: Path, method: str
) -> None:
    keys = SAME_AS_LORA[method]
    space = toy_space(
        "lora",
        method,
        lora={"rank": [2, 4]},
        **{
            method: {**keys, "rank": [2, 4]}
            if method == "pilora"
            else {**keys, "mean_rank": [2, 4]}
        },
    )
    lora = parse_choice(LORA)
    other = parse_choice({"method": method, **keys, "learning_rate": 1e-3})
    slower = parse_choice({"method": method, **keys, "learning_rate": 9e-4})
    assert make_plan(lora, TARGETS, PROFILE).digest == make_plan(other, TARGETS, PROFILE).digest
    study = toy_study(tmp_path)
    said: list[str] = []
    searcher = searcher_over(study, space, trials=3, enqueue=[lora, other, slower], say=said.append)
    assert asked(searcher, "t0")["choice"] == lora.as_dict()
    finish(searcher, "t0", 0.73)
    # `other` is told and passed over: the next that is trained differs in its learning rate.
    assert asked(searcher, "t1")["choice"] == slower.as_dict()
    original, answered = study.trials[:2]
    assert answered.state == TrialState.COMPLETE
    assert answered.values == [0.73]
    assert answered.intermediate_values == original.intermediate_values
    assert answered.user_attrs["ranksweep_duplicate_of"] == 0
    assert trial_rows(study)[1].reason == "the same training as trial 0"
    assert json.loads(answered.user_attrs["choice"]) == other.as_dict()
    assert searcher.handed == 2
    assert searcher.counts == {"lora": 1, method: 1}
    assert said == [
        f"{method}: a choice that is the same plan at the same learning rate as trial 0 (lora) is "
        "answered from it"
    ]
    assert states_of(study) == {"complete": 1, "duplicate": 1}
    # Both methods have it as their best; the record of it is the first trial's.
    rows = {row.arm: row for row in best_of_each_method(study, ACCURACY)}
    assert {arm: (row.value, row.number, row.seeds) for arm, row in rows.items()} == {
        "lora": (0.73, 0, 1),
        method: (0.73, 0, 1),
    }
    assert rows[method].choice == other.as_dict()


def test_a_choice_that_is_the_same_as_one_that_runs_is_not_trained_beside_it(
    tmp_path: Path,
) -> None:
    space = toy_space("lora", "pilora", pilora={**SAME_AS_LORA["pilora"], "rank": [2, 4]})
    lora = parse_choice(LORA)
    same = parse_choice({"method": "pilora", **SAME_AS_LORA["pilora"], "learning_rate": 1e-3})
    searcher = searcher_over(toy_study(tmp_path), space, trials=3, enqueue=[lora, same])
    assert asked(searcher, "t0")["choice"] == lora.as_dict()
    second = asked(searcher, "t1")["choice"]
    assert second["method"] == "pilora"
    assert second["learning_rate"] != 1e-3


def test_a_space_of_few_choices_is_trained_whole_and_then_the_search_ends_and_says_why(
    tmp_path: Path,
) -> None:
    rates = [1e-3, 2e-3, 4e-3]
    space = SearchSpace.parse(
        {
            "learning_rate": rates,
            "methods": {
                "lora": {"rank": [2, 4], "alpha_over_rank": 2},
                "pilora": {"rank": [2, 4], "partition": {"rule": ["all", "hits"], "threshold": 0.5},
                           "supplementary_rank": 0, "alpha_over_rank": 2},
            },
        }
    )  # fmt: skip
    study = toy_study(tmp_path)
    searcher = searcher_over(study, space, trials=50)
    given = run_all(searcher)
    # 6 of lora; 12 of pilora, of which 6 let every row be dominant: that is lora.
    trainings = {
        (
            make_plan(parse_choice(s["choice"]), TARGETS, PROFILE).digest,
            s["choice"]["learning_rate"],
        )
        for s in given
    }
    assert len(trainings) == len(given) == 12
    assert searcher.handed == 12
    assert "space.methods.lora: takes no further part" in str(searcher.shortfall)
    assert "space.methods.pilora: takes no further part" in str(searcher.shortfall)
    assert "trained already" in str(searcher.shortfall)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_no_parameter_of_one_method_is_ever_asked_for_another_resumed_or_not(
    tmp_path: Path,
) -> None:
    objectives = ("accuracy", "trainable_params")
    for trials in (25, 50):
        study = toy_study(tmp_path, objectives)
        searcher = searcher_over(study, objectives=objectives, trials=trials)
        for number in range(trials):
            suggested = searcher.suggest(f"t{number}")
            if suggested == Searcher.FINISHED:
                break
            assert isinstance(suggested, dict)
            finish(
                searcher,
                f"t{number}",
                1 - abs(math.log10(suggested["choice"]["learning_rate"] / 3e-3)),
            )
    assert len(study.trials) == 50
    for trial in study.trials:
        method = trial.params["method"]
        assert method == trial.user_attrs["method"]
        keys = {name.removeprefix(f"{method}.") for name in trial.params if name != "method"}
        assert keys <= set(toy_space().domains[method])
        assert "learning_rate" in keys


def test_a_dead_driver_s_trials_are_settled_and_asked_again(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, trials=8)
    given = [asked(searcher, f"t{number}") for number in range(4)]
    finish(searcher, "t0")
    searcher.on_trial_complete("t1", row(1, 0.2))
    del searcher, study

    study = toy_study(tmp_path)
    again = interrupted(study)
    assert [choice.as_dict() for choice in again] == [s["choice"] for s in given[2:]]
    finished = {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert {trial.state for trial in study.trials} <= finished
    assert len(handed_out(study)) == 2

    resumed = searcher_over(study, trials=8, enqueue=again)
    assert resumed.handed == 2
    rest = run_all(resumed)
    assert [suggested["choice"] for suggested in rest[:2]] == [s["choice"] for s in given[2:]]
    assert len(rest) == 6
    assert len(handed_out(study)) == 8
    assert set(resumed.counts.values()) <= {1, 2}
    assert interrupted(study) == []


def test_a_trial_that_the_driver_cut_off_is_asked_again_once(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study, trials=2)
    given = asked(searcher, "t0")
    searcher.on_trial_result("t0", row(1, 0.3))
    ended = searcher.cancel("t0", "interrupted")
    assert ended is not None
    assert ended.state == "cancelled"
    assert study.trials[0].state == TrialState.FAIL
    assert study.trials[0].intermediate_values == {1: 0.3}
    (again,) = interrupted(study)
    assert again.as_dict() == given["choice"]
    run_all(searcher_over(study, trials=2, enqueue=[again]))
    assert interrupted(study) == []


def test_a_resumed_search_leaves_out_enqueued_choices_that_are_trained(tmp_path: Path) -> None:
    space = toy_space()
    defaults = [space.default_choice(method) for method in METHODS]
    study = toy_study(tmp_path)
    run_all(searcher_over(study, space, trials=5, enqueue=defaults))
    study = toy_study(tmp_path)
    given = run_all(searcher_over(study, space, trials=7, enqueue=defaults))
    assert len(given) == 2
    assert all(parse_choice(suggested["choice"]) not in defaults for suggested in given)


def test_an_enqueued_choice_outside_the_space_is_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = toy_space("lora")
    outside = parse_choice({"method": "lora", "rank": 5, "learning_rate": 1e-3})
    given = run_all(searcher_over(toy_study(tmp_path), space, trials=2, enqueue=[outside]))
    assert all(suggested["choice"]["rank"] != 5 for suggested in given)
    assert "an enqueued choice is left out: lora.rank: 5 is not in the space" in caplog.text


def test_a_resumed_sampler_does_not_draw_its_first_points_again(tmp_path: Path) -> None:
    first = run_all(searcher_over(toy_study(tmp_path, sampler="random"), trials=5))
    second = run_all(searcher_over(toy_study(tmp_path, sampler="random"), trials=10))
    rates = {suggested["choice"]["learning_rate"] for suggested in first + second}
    assert len(rates) == 10


def test_a_study_of_another_space_is_refused_in_one_line(tmp_path: Path) -> None:
    run_all(searcher_over(toy_study(tmp_path), toy_space("lora"), trials=1))
    searcher = searcher_over(toy_study(tmp_path), toy_space("lora", "taso"), trials=2)
    with pytest.raises(ConfigError, match=r"^space: does not fit the study"):
        searcher.suggest("t0")
    assert TrialState.RUNNING not in {trial.state for trial in toy_study(tmp_path).trials}


def test_a_study_of_other_objectives_is_refused(tmp_path: Path) -> None:
    toy_study(tmp_path)
    with pytest.raises(ConfigError, match=r"^search\.objectives: the study 'toy' was made with"):
        toy_study(tmp_path, ("accuracy", "trainable_params"))


def test_saved_state_is_json_and_names_the_open_trials(tmp_path: Path) -> None:
    searcher = searcher_over(toy_study(tmp_path))
    searcher.suggest("t0")
    finish(searcher, "t0")
    open_one = asked(searcher, "t1")
    path = tmp_path / "state"
    searcher.save(str(path))
    assert json.loads(path.read_text()) == {"t1": open_one["number"]}


def test_a_tracking_run_is_noted_on_the_open_trial(tmp_path: Path) -> None:
    study = toy_study(tmp_path)
    searcher = searcher_over(study)
    number = asked(searcher, "t0")["number"]
    searcher.set_run_id(number, "abc123", "https://host/run")
    said = study.trials[number].user_attrs
    assert (said["mlflow_run_id"], said["mlflow_link"]) == ("abc123", "https://host/run")
    finish(searcher, "t0")
    with pytest.raises(KeyError):
        searcher.set_run_id(number, "later")


def test_directions_of_losses_and_counts_are_down() -> None:
    assert directions(("accuracy", "trainable_params"), "max") == ["maximize", "minimize"]
    assert directions(("dev_loss",), "min") == ["minimize"]
    assert directions(("perplexity",), "min") == ["minimize"]


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^search\.sampler: 'gird' is not a sampler"):
        make_sampler("gird", 0)


def test_a_search_shorter_than_what_is_enqueued_takes_the_first_of_it(tmp_path: Path) -> None:
    space = toy_space()
    defaults = [space.default_choice(method) for method in METHODS]
    study = open_study(
        f"sqlite:///{tmp_path}/study.db",
        "short",
        objectives=("accuracy",),
        mode="max",
        sampler="tpe",
        seed=3,
    )
    given = run_all(searcher_over(study, space, trials=3, enqueue=defaults))
    assert [suggested["choice"]["method"] for suggested in given] == list(METHODS[:3])
    assert all(trial.state.is_finished() for trial in study.trials)


# -- what runs still ------------------------------------------------------------------------------


def test_a_repetition_waits_for_the_trial_that_may_be_the_best(tmp_path: Path) -> None:
    said: list[str] = []
    searcher = searcher_over(
        toy_study(tmp_path), trials=4, epochs=1, repeats=(1, 2), say=said.append
    )
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    searcher.on_trial_complete("a", row(1, 0.5))
    assert searcher.suggest("c") is None, "the second may be better"
    searcher.on_trial_complete("b", row(1, 0.6))
    for trial_id, best in (("c", second), ("d", first)):  # the last look is LoRA's
        again = searcher.suggest(trial_id)
        assert isinstance(again, dict)
        assert (again["choice"], again["seed"]) == (best["choice"], 1000)
    assert [text for text in said if "again" in text] == [
        f"trial {number}: trains the choice of trial {best['number']} again, with seed 1000"
        for number, best in ((2, second), (3, first))
    ]


def test_a_space_that_ran_out_is_repeated_and_its_twin_is_answered(tmp_path: Path) -> None:
    alone = {"learning_rate": 1e-3, "rank": 2, "alpha": 16}
    all_rows = {"rule": "all", "threshold": 0.5}
    space = SearchSpace.parse(
        {"methods": {"lora": alone, "pilora": {**alone, "supplementary_rank": 0,
                                               "partition": all_rows}}}
    )  # fmt: skip
    study = toy_study(tmp_path)
    searcher = searcher_over(study, space, trials=6, epochs=1, repeats=(1, 2))
    first = searcher.suggest("a")
    assert isinstance(first, dict)
    assert searcher.suggest("b") is None, "what it would train is being trained"
    searcher.on_trial_complete("a", row(1, 0.5))
    for trial_id, seed in (("b", 1000), ("c", 1001)):
        again = searcher.suggest(trial_id)
        assert isinstance(again, dict)
        assert (again["choice"], again["seed"]) == (first["choice"], seed)
        searcher.on_trial_complete(trial_id, row(1, 0.4))
    assert searcher.suggest("d") == Searcher.FINISHED
    twins = [t for t in study.trials if "ranksweep_duplicate_of" in t.user_attrs]
    assert [(t.user_attrs["method"], t.value) for t in twins] == [("pilora", 0.5)]
