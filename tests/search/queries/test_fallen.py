"""A confirmed choice that does not hold what it was chosen for is told, and what is next."""

from __future__ import annotations

from typing import Any

import pytest

from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.comparison import Confirmation, OnTest, summarize
from search.queries.fallen import fallen

ACCURACY = Objective("accuracy", "max")
LOSS = Objective("dev_loss", "min")


def chosen(arm: str, number: int, *values: float, collapsed: int = 0) -> BestChoice:
    mean = sum(values) / len(values)
    return BestChoice(
        arm, arm, mean, list(values), len(values), 10, number, None, {}, mean, collapsed
    )


def confirmed(
    arm: str, number: int, on_dev: list[float], collapsed: int = 0, objective: Objective = ACCURACY
) -> Confirmation:
    row: dict[str, Any] = {
        "method": arm, "arm": arm, "number": number, "choice": {}, "trainable_params": 10,
    }  # fmt: skip
    tested = {
        seed: OnTest(value, on_dev=value, collapsed=seed < collapsed)
        for seed, value in enumerate(on_dev)
    }
    return summarize([(row, tested)], objective)[0]


STEADY = confirmed("taso", 1, [0.80, 0.81, 0.80, 0.79, 0.80])
FROM = [
    chosen("lora", 12, 0.865), chosen("lora", 3, 0.848, 0.846), chosen("taso", 1, 0.806),
    chosen("lora", 5, 0.52, collapsed=1), chosen("taso", 2, 0.79),
]  # fmt: skip


def test_a_collapse_is_told_with_the_next_best_of_its_method() -> None:
    lucky = confirmed("lora", 12, [0.865, 0.507, 0.86, 0.507, 0.85], collapsed=2)
    assert lucky.collapsed == 2
    (line,) = fallen([lucky, STEADY], FROM, ACCURACY)
    assert line == (
        "lora (trial 12) does not hold: 2 of 5 seeds collapsed (one class alone is predicted); "
        "accuracy on dev was 0.865 when it was chosen, and is 0.7178 over the seeds that confirm "
        "it; the next best is trial 3, 0.847 with 2 seeds: --resume with a larger confirm.top "
        "confirms it too"
    )
    # What has collapsed before, or is confirmed already, is not the next best.
    (line,) = fallen([lucky, STEADY, confirmed("lora", 3, [0.85, 0.84])], FROM, ACCURACY)
    assert "next best" not in line


@pytest.mark.parametrize(("shift", "is_told"), [(0.0, False), (-0.02, False), (-0.06, True)])
@pytest.mark.parametrize("objective", [ACCURACY, LOSS])
def test_what_falls_beyond_the_noise_is_told_and_what_was_a_little_lucky_is_not(
    objective: Objective, shift: float, is_told: bool
) -> None:
    sign = 1 if objective is ACCURACY else -1
    again = [0.865 + sign * shift + each for each in (-0.01, 0.01, 0.0, 0.005, -0.005)]
    row = confirmed("lora", 12, again, objective=objective)
    lines = fallen([row, STEADY], FROM, objective)
    assert bool(lines) == is_told
    if is_told:
        assert lines[0].startswith("lora (trial 12) does not hold: ")


def test_a_choice_that_two_arms_share_is_told_once_and_old_runs_say_nothing() -> None:
    lucky = confirmed("lora", 12, [0.865, 0.507], collapsed=1)
    assert len(fallen([lucky, lucky], FROM, ACCURACY)) == 1
    row = {"method": "lora", "arm": "lora", "number": 12, "choice": {}, "trainable_params": 1}
    (unknown,) = summarize([(row, {1: OnTest(0.5), 2: OnTest(0.6)})], ACCURACY)
    assert fallen([unknown, STEADY], FROM, ACCURACY) == []
