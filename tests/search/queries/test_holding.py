"""What a choice holds: a lower bound by its own spread and the sweep's, and collapse comes last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search.objective import Objective
from search.queries.holding import Seeds, noise_of

MORE, LESS = Objective("accuracy", "max"), Objective("dev_loss", "min")


def test_a_choice_holds_its_mean_less_one_standard_error_of_the_larger_spread() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.normal(0.8, 0.02, rng.integers(1, 6))
        noise = float(rng.choice([0.0, 0.01, 0.05]))
        own = values.std(ddof=1) if len(values) > 1 else 0.0
        error = max(own, noise) / np.sqrt(len(values))
        seeds = Seeds(values.tolist())
        assert seeds.holds(noise, MORE) == pytest.approx(values.mean() - error)
        assert seeds.holds(noise, LESS) == pytest.approx(values.mean() + error)


def test_the_noise_is_the_median_deviation_of_what_was_repeated_and_did_not_collapse() -> None:
    once, steady, rough = Seeds([0.9]), Seeds([0.80, 0.82]), Seeds([0.70, 0.80, 0.75])
    fallen = Seeds([0.865, 0.507, 0.507], collapsed=2)
    deviations = [np.std([0.80, 0.82], ddof=1), np.std([0.70, 0.80, 0.75], ddof=1)]
    assert noise_of([once, steady, fallen, rough]) == pytest.approx(np.median(deviations))
    assert noise_of([once, fallen]) == 0.0
    assert noise_of([]) == 0.0


def best_of(every: dict[str, Seeds], objective: Objective = MORE) -> list[str]:
    noise = noise_of(every.values())
    return sorted(every, key=lambda name: every[name].rank(noise, objective))


def test_without_noise_the_order_is_that_of_the_means() -> None:
    values: dict[str, Any] = {"a": [0.7], "b": [0.9, 0.9, 0.9], "c": [0.8, 0.8], "d": [0.95]}
    every = {name: Seeds(each) for name, each in values.items()}
    assert best_of(every) == ["d", "b", "c", "a"]
    assert best_of(every, LESS) == ["a", "c", "b", "d"]
    # Nothing was repeated: there is no noise that is known.
    assert best_of({"a": Seeds([0.7]), "b": Seeds([0.71])}) == ["b", "a"]


def test_one_lucky_seed_is_no_better_than_what_has_held_and_a_collapse_comes_last() -> None:
    every = {
        "lucky": Seeds([0.841]),
        "held": Seeds([0.842, 0.838, 0.841]),
        "beside the cliff": Seeds([0.865, 0.862, 0.507], collapsed=1),
        "poor": Seeds([0.60]),
        "collapsed at once": Seeds([0.62], collapsed=1),
    }
    assert best_of(every) == ["held", "lucky", "poor", "beside the cliff", "collapsed at once"]
