"""Tune's scheduler driven by hand: who is stopped, by whom, and when."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from search.tuning.asha import EpochAsha, PastTrial
from search.tuning.rungs import Contender, Rungs
from tests.search.toy_search import ACCURACY

GO, STOP = "CONTINUE", "STOP"


class Race:
    """A scheduler over epochs, and the trials that a test has put into it."""

    def __init__(
        self, epochs: int, grace: int = 1, factor: float = 2, pareto: bool = False
    ) -> None:
        self.contenders: dict[str, Contender] = {}
        self.asha = EpochAsha(
            "accuracy",
            Rungs(ACCURACY, factor, pareto=pareto),
            self.contenders.get,
            epochs=epochs,
            grace_epochs=grace,
            reduction_factor=factor,
        )
        self.epochs = epochs

    def enter(
        self,
        name: str,
        values: float | Sequence[float],
        *,
        arm: str = "lora",
        params: int = 100,
        stages: int = 1,
        full: bool = False,
        config: dict[str, Any] | None = None,
    ) -> list[str]:
        """The decisions on a trial after each epoch, up to the first STOP."""
        length = stages if full else 1
        self.contenders[name] = Contender(arm, params, stages, length)
        trial = SimpleNamespace(trial_id=name, config=config or {})
        every = [values] * self.epochs * length if isinstance(values, float) else values
        decisions: list[str] = []
        for epoch, value in enumerate(every, start=1):
            row = {"epoch": epoch, "accuracy": value}
            decisions.append(self.asha.on_trial_result(None, trial, row))
            if decisions[-1] == STOP:
                return decisions
        self.asha.on_trial_complete(None, trial, {"accuracy": every[-1]})
        return decisions

    def fail(self, name: str) -> None:
        self.asha.on_trial_error(None, SimpleNamespace(trial_id=name, config={}))


def test_each_arm_is_compared_with_itself_alone() -> None:
    race = Race(9, factor=3)
    for number in range(4):
        race.enter(f"taso{number}", 0.9, arm="taso")
    assert race.enter("first lora", 0.3) == [GO] * 9
    assert race.enter("worse lora", 0.2) == [STOP]
    assert race.enter("better lora", 0.4) == [GO] * 9
    assert race.enter("worse taso", 0.8, arm="taso") == [STOP]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_whoever_comes_when_some_trial_of_the_arm_runs_to_its_end(seed: int, factor: float) -> None:
    # Curves that cross, of trials that are told epoch by epoch in turn.
    race, rng = Race(9, factor=factor), np.random.default_rng(seed)
    curves = {f"t{i}": list(rng.random(9)) for i in range(7)}
    race.contenders |= dict.fromkeys(curves, Contender("lora", 1))
    at = dict.fromkeys(curves, 0)
    running = list(curves)
    while running:
        name = str(rng.choice(running))
        at[name] += 1
        row = {"epoch": at[name], "accuracy": curves[name][at[name] - 1]}
        trial = SimpleNamespace(trial_id=name, config={})
        if race.asha.on_trial_result(None, trial, row) == STOP or at[name] == 9:
            running.remove(name)
    complete = [name for name, epochs in at.items() if epochs == 9]
    assert complete
    # By the paper one in `factor` goes on from the first rung; asynchronously a few more.
    first = sorted(curves, key=lambda name: -curves[name][0])
    assert at[first[0]] > 1


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("epochs", [2, 3, 5, 8, 9])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_a_plan_of_stages_is_not_stopped_before_its_last(
    stages: int, epochs: int, steps_per_epoch: int
) -> None:
    race = Race(epochs)
    for number in range(3):
        race.enter(f"good{number}", 0.9)
    decisions = race.enter("staged", 0.1, stages=stages)
    steps = epochs * steps_per_epoch
    last_stage_starts = (stages - 1) * steps // stages
    allowed = [e for e in range(1, epochs) if e * steps_per_epoch > last_stage_starts]
    # In exact numbers: at epoch e the last stage has trained where e S > (S - 1) E.
    exact = [e for e in range(1, epochs) if e * stages > (stages - 1) * epochs]
    assert set(exact) <= set(allowed)
    assert decisions == ([GO] * (exact[0] - 1) + [STOP] if exact else [GO] * epochs)


def test_plans_of_unlike_stages_meet_where_both_can_be_compared() -> None:
    # Rungs are at 1, 2 and 4; of 8 epochs the last of 2 stages begins in the 5th, of 4 in the 7th.
    race = Race(8)
    assert race.enter("two", [0.1] * 4 + [0.5] * 4, arm="taso", stages=2) == [GO] * 8
    # What it was in its first stage does not count, nor what others are at other epochs.
    assert race.enter("behind", [0.9] * 4 + [0.4] * 4, arm="taso", stages=2) == [GO] * 4 + [STOP]
    assert race.enter("four", [0.9] * 6 + [0.45] * 2, arm="taso", stages=4) == [GO] * 6 + [STOP]
    assert race.enter("best", [0.1] * 6 + [0.6] * 2, arm="taso", stages=4) == [GO] * 8


def test_a_plan_that_joins_late_is_not_held_against_the_survivors_alone() -> None:
    # A third go on. At epoch 7 there are two survivors, and four that were stopped before.
    race = Race(8, factor=3)
    for name, value in (("a", 0.5), ("b", 0.6)):
        assert race.enter(name, value, arm="taso", stages=2) == [GO] * 8
    for number in range(4):
        assert race.enter(f"worse{number}", 0.1, arm="taso", stages=2) == [GO] * 4 + [STOP]
    # Second of seven.
    assert race.enter("late", 0.55, arm="taso", stages=4) == [GO] * 8


@pytest.mark.parametrize("stages", [2, 8])
def test_full_stages_are_compared_by_the_epochs_of_their_last(stages: int) -> None:
    race = Race(4)
    for number in range(3):
        race.enter(f"other{number}", 0.5)
    before = 4 * (stages - 1)
    assert race.enter("bad", 0.1, stages=stages, full=True) == [GO] * before + [STOP]
    assert race.enter("good", 0.9, stages=stages, full=True) == [GO] * (before + 4)
    assert race.enter("later", 0.4) == [STOP]


def test_a_held_back_plan_does_not_raise_the_bar_of_an_earlier_rung() -> None:
    race = Race(8)
    race.enter("first", 0.5)
    assert race.enter("staged", 0.9, stages=2) == [GO] * 8
    assert race.enter("second", 0.5) == [GO] * 8
    assert race.enter("third", 0.4) == [STOP]


@pytest.mark.parametrize("config", [{"repeat": 1}, {"warm": "weights.safetensors"}])
def test_what_is_compared_with_none_is_never_stopped_and_raises_no_bar(
    config: dict[str, Any],
) -> None:
    race = Race(4)
    race.enter("first", 0.5)
    assert race.enter("lucky", 0.9, config=config) == [GO] * 4
    assert race.enter("unlucky", 0.1, config=config) == [GO] * 4
    assert race.enter("second", 0.5) == [GO] * 4


def test_a_trial_that_fails_sets_no_bar() -> None:
    race = Race(4)
    race.enter("fails", [0.9])
    race.fail("fails")
    assert race.enter("ends at no number", [0.9, 0.9, 0.9, float("nan")]) == [GO] * 4
    assert race.enter("next", 0.5) == [GO] * 4
    assert race.enter("no number at first", [float("nan"), 0.5, 0.5, 0.5]) == [GO] * 4
    assert race.enter("nor better then", [float("nan"), 0.4, 0.4, 0.4]) == [GO, STOP]


def test_with_two_objectives_the_front_goes_on() -> None:
    race = Race(4, pareto=True)
    race.enter("large", 0.9, params=1000)
    assert race.enter("small", 0.5, params=10) == [GO] * 4
    assert race.enter("between", 0.4, params=100) == [STOP]
    assert race.enter("as small", 0.4, params=10) == [STOP]


def test_a_search_that_goes_on_keeps_its_bars() -> None:
    race = Race(8)
    past = Contender("lora", 100)
    rest = dict.fromkeys(range(1, 9), 0.6)
    race.asha.add_past(
        [PastTrial("0", past, rest, {}, False), PastTrial("1", past, {1: 0.2}, {}, True)]
    )
    assert race.enter("worse", 0.5) == [STOP]
    assert race.enter("better", 0.7) == [GO] * 8


@pytest.mark.parametrize("grace", [2, 4, 9])
def test_nothing_is_stopped_before_its_grace_nor_after_its_last_epoch(grace: int) -> None:
    race = Race(4, grace=grace)
    race.enter("good", 0.9)
    assert race.enter("bad", 0.1) == ([GO, STOP] if grace == 2 else [GO] * 4)
    assert race.enter("staged", 0.1, stages=4) == ([GO] * 4)
