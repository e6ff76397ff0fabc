"""The sampler `plan`, without Ray: what it proposes, from what, and when."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.study import plan_sampler
from search.surrogate.model import PlanModel, fit_model
from search.surrogate.observation import Observation, RelatedSweep
from search.tuning.searcher import StudySearcher
from spaces.features import plan_features
from spaces.methods.registry import parse_choice
from spaces.planner import Planner
from spaces.search_space import SearchSpace
from tests.search.toy_search import (
    SPACE,
    TARGETS,
    handed_out,
    searcher_over,
    toy_profile,
    toy_space,
    toy_study,
)

PLANNER = Planner(TARGETS, toy_profile())
FRONT = ("accuracy", "trainable_params")


def worth(choice: dict[str, Any]) -> float:
    """Best at one size of the first update, and a little better with more parameters."""
    parsed = parse_choice(choice)
    plan = PLANNER.plan(parsed)
    features = plan_features(plan, parsed.learning_rate, PLANNER.profile)
    miss = features["log10_first_update"] + 1.7
    return 0.8 - 0.3 * miss**2 + 0.05 * log10(plan.trainable_params)


def plan_search(folder: Path, **settings: Any) -> tuple[optuna.Study, StudySearcher]:
    study = toy_study(folder, settings.get("objectives", ("accuracy",)), "plan")
    given = {"allocation": "free", "sampler": "plan", "epochs": 1, **settings}
    return study, searcher_over(study, **given)


def trained(searcher: StudySearcher, number: int) -> float:
    """Train what is suggested next, on paper."""
    suggested = searcher.suggest(str(number))
    assert isinstance(suggested, dict)
    value = worth(suggested["choice"])
    searcher.on_trial_complete(str(number), {"epoch": 1, "accuracy": value})
    return value


def test_it_finds_the_right_update_whatever_the_method(tmp_path: Path) -> None:
    _, searcher = plan_search(tmp_path, trials=11)
    values = [trained(searcher, number) for number in range(11)]
    assert max(values[5:]) > max(values[:5])
    assert max(values[7:]) > 0.9  # the best that there is has about 0.99


def test_a_resumed_search_proposes_what_it_would_have(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    study, searcher = plan_search(one, trials=8)
    for number in range(8):
        trained(searcher, number)
    for first, last in ((0, 5), (5, 6), (6, 8)):
        again, searcher = plan_search(other, trials=8)
        for number in range(first, last):
            trained(searcher, number)
    assert [t.params for t in handed_out(study)] == [t.params for t in handed_out(again)]


def test_two_objectives_fill_the_front_within_max_params(tmp_path: Path) -> None:
    study, searcher = plan_search(tmp_path, trials=10, objectives=FRONT, max_params=900)
    for number in range(10):
        trained(searcher, number)
    counts = [trial.user_attrs["trainable_params"] for trial in handed_out(study)]
    assert max(counts) <= 900
    assert min(counts[5:]) < min(counts[:5]) or len(study.best_trials) >= 4
    assert len({trial.user_attrs["training"] for trial in handed_out(study)}) == 10


def test_what_runs_is_not_proposed_again_and_neither_is_its_neighbour(tmp_path: Path) -> None:
    study, searcher = plan_search(tmp_path, trials=9)
    for number in range(6):
        trained(searcher, number)
    for number in range(6, 9):  # none of them ends
        assert isinstance(searcher.suggest(str(number)), dict)
    running = handed_out(study)[6:]
    assert all(trial.state == TrialState.RUNNING for trial in running)
    rates = [trial.params[f"{trial.params['method']}.learning_rate"] for trial in running]
    assert max(rates) / min(rates) > 1.5


def test_equal_takes_the_arms_in_turn_and_free_leaves_lora_its_part(tmp_path: Path) -> None:
    equal, free = tmp_path / "equal", tmp_path / "free"
    for folder in (equal, free):
        folder.mkdir()
    space = toy_space("lora", "joint")
    _, searcher = plan_search(equal, trials=8, allocation="equal", space=space)
    for number in range(8):
        trained(searcher, number)
    assert set(searcher.proposals.standing.counts.values()) == {4}
    study, searcher = plan_search(free, trials=12, space=space)
    for number in range(12):
        suggested = searcher.suggest(str(number))
        assert isinstance(suggested, dict)
        value = 0.5 if suggested["choice"]["method"] == "lora" else 0.9
        searcher.on_trial_complete(str(number), {"epoch": 1, "accuracy": value})
    assert searcher.proposals.standing.counts["lora"] >= 3
    assert searcher.proposals.standing.counts["joint"] > 6
    assert len(handed_out(study)) == 12


def test_failed_and_stopped_trials_are_learned_from(tmp_path: Path) -> None:
    study, searcher = plan_search(tmp_path, trials=10, epochs=3, space=toy_space("lora"))
    for number in range(10):
        suggested = searcher.suggest(str(number))
        assert isinstance(suggested, dict)
        rate = suggested["choice"]["learning_rate"]
        if rate > 2e-3:  # it blows up
            searcher.on_trial_complete(str(number), {"epoch": 3, "accuracy": float("nan")})
        elif rate < 3e-4:  # it is stopped
            searcher.on_trial_result(str(number), {"epoch": 1, "accuracy": 0.2})
            searcher.on_trial_complete(str(number), {"epoch": 1, "accuracy": 0.2})
        else:
            value = 0.7 - 0.2 * log10(rate / 9e-4) ** 2
            searcher.on_trial_complete(str(number), {"epoch": 3, "accuracy": value})
    states = [trial.state for trial in handed_out(study)]
    lost = {TrialState.FAIL, TrialState.PRUNED}
    assert lost & set(states[:5])
    assert sum(state in lost for state in states[5:]) < sum(state in lost for state in states[:5])


def history(sign: float) -> RelatedSweep:
    """Thirty LoRAs of an earlier sweep."""
    found = []
    for number in range(30):
        choice = {
            "method": "lora",
            "rank": (1, 2, 4, 8)[number % 4],
            "learning_rate": 1e-4 * 100 ** (number / 29),
        }
        parsed = parse_choice(choice)
        plan = PLANNER.plan(parsed)
        features = plan_features(plan, parsed.learning_rate, PLANNER.profile)
        found.append(Observation(features, "lora", sign * worth(choice)))
    return RelatedSweep("run", "base", True, tuple(found))


def test_with_a_history_the_first_trials_are_good(tmp_path: Path) -> None:
    _, searcher = plan_search(tmp_path, trials=4, history=[history(1.0)])
    values = [trained(searcher, number) for number in range(4)]
    assert min(values[:2]) > 0.85


@pytest.mark.parametrize("allocation", ["equal", "free"])
def test_arms_that_cannot_fit_take_no_part(tmp_path: Path, allocation: str) -> None:
    space = toy_space("lora", taso={"rank": 8, "rounds": 4})
    study, searcher = plan_search(
        tmp_path, trials=7, max_params=400, space=space, allocation=allocation
    )
    for number in range(7):
        trained(searcher, number)
    assert {trial.user_attrs["method"] for trial in handed_out(study)} == {"lora"}
    assert "max_params" in str(searcher.shortfall)


def test_of_many_trials_the_newest_and_the_best_of_the_others_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_sampler, "REMEMBERED", 6)
    monkeypatch.setattr(plan_sampler, "BEST", 2)
    known: list[list[float]] = []

    def fit(observations: list[Observation], **settings: Any) -> PlanModel:
        if settings["like"] is not None:
            known.append([each.value for each in observations])
        return fit_model(observations, **settings)

    monkeypatch.setattr(plan_sampler, "fit_model", fit)
    _, searcher = plan_search(tmp_path, trials=9)
    values = [trained(searcher, number) for number in range(9)]
    for count in (7, 8):
        older, newest = values[: count - 4], values[count - 4 : count]
        best = sorted(older)[-2:]
        assert known[count - 5] == [*(v for v in older if v in best), *newest]


def test_what_a_space_no_longer_holds_is_moved_into_it(tmp_path: Path) -> None:
    study, searcher = plan_search(tmp_path, trials=12, space=toy_space("lora", "pilora"))
    for number in range(6):
        trained(searcher, number)
    narrowed = {"low": 2e-3, "high": 4e-3, "log": True}
    methods = {name: SPACE["methods"][name] for name in ("lora", "pilora")}
    space = SearchSpace.parse({"learning_rate": narrowed, "methods": methods})
    _, searcher = plan_search(tmp_path, trials=12, space=space)
    for number in range(6, 10):
        trained(searcher, number)
    rates = [parse_choice(json.loads(t.user_attrs["choice"])).learning_rate for t in study.trials]
    assert all(2e-3 <= rate <= 4e-3 for rate in rates[6:])


def test_an_arm_may_be_a_value_of_what_a_plan_is_tried_with(tmp_path: Path) -> None:
    lora = {"rank": [2, 4], "alpha_over_rank": [1.0, 2.0]}
    space = toy_space("lora", lora=lora)
    study, searcher = plan_search(
        tmp_path, trials=10, space=space, arms=("alpha_over_rank",), allocation="equal"
    )
    for number in range(10):
        trained(searcher, number)
    arms = [trial.user_attrs["arm"] for trial in handed_out(study)]
    assert {arm: arms.count(arm) for arm in {*arms}} == {
        "lora alpha_over_rank=1.0": 5,
        "lora alpha_over_rank=2.0": 5,
    }
