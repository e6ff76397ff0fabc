"""What more trials are worth, against closed forms and brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from search.surrogate.model import fit_model
from search.surrogate.observation import Observation
from search.surrogate.worth import worth_of_more
from tests.search.surrogate.recorded_sweeps import hill, some_choices


@dataclass(frozen=True)
class Known:
    """A posterior that is written down: a choice's feature `at` is its place in it."""

    mean: np.ndarray[Any, Any]
    covariance: np.ndarray[Any, Any]
    noise_sd: float

    def _at(self, choices: Sequence[Observation]) -> list[int]:
        return [int(each.features["at"]) for each in choices]

    def predict(self, choices: Sequence[Observation]) -> tuple[Any, Any]:
        at = self._at(choices)
        return self.mean[at], np.sqrt(np.diag(self.covariance)[at])

    def sample(self, choices: Sequence[Observation], n: int, rng: np.random.Generator) -> Any:
        at = self._at(choices)
        return rng.multivariate_normal(self.mean[at], self.covariance[np.ix_(at, at)], n)


def place(at: int, params: int = 100) -> Observation:
    return Observation({"at": float(at)}, "lora", 0.0, params=params)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_one_trial_it_is_the_knowledge_gradient_in_its_closed_form(sign: int) -> None:
    """Frazier, Powell and Dayanik 2009, for two choices that do not inform each other."""
    model: Any = Known(
        sign * np.array([0.70, 0.69]), np.diag([1e-12, 0.02**2]), noise_sd=0.01
    )  # fmt: skip
    found = worth_of_more(model, [place(0)], [place(1)], 1, maximize=sign > 0)
    moves = 0.02**2 / np.hypot(0.02, 0.01)
    z = (0.69 - 0.70) / moves
    assert found.gain == pytest.approx(moves * (z * norm.cdf(z) + norm.pdf(z)), rel=0.15)
    assert found.in_noise == found.gain / 0.01


def test_where_a_trial_informs_others_it_is_what_brute_force_says() -> None:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((6, 6)) * 0.02
    mean, covariance = 0.7 + 0.01 * rng.standard_normal(6), root @ root.T
    noise = 0.015
    tried, new = [place(0), place(1), place(2)], [place(3), place(4), place(5)]
    model: Any = Known(mean, covariance, noise)
    found = worth_of_more(model, tried, new, 300, maximize=True)  # all three are among so many

    at = [3, 4, 5]
    gain = covariance[:, at] @ np.linalg.inv(covariance[np.ix_(at, at)] + noise**2 * np.eye(3))
    best = []
    for f in rng.multivariate_normal(mean, covariance, 20_000):
        seen = f[at] + noise * rng.standard_normal(3)
        best.append((mean + gain @ (seen - mean[at])).max())
    assert found.gain == pytest.approx(np.mean(best) - mean[:3].max(), rel=0.1)


def test_with_two_objectives_a_gain_counts_for_the_budgets_that_it_fits() -> None:
    """Of ten times the parameters from the smallest to the largest, the new one fits half."""
    sure = 1e-12 * np.eye(3)
    model: Any = Known(np.array([0.6, 0.7, 0.8]), sure, noise_sd=0.01)
    tried = [place(0, 100), place(1, 1000)]
    better = worth_of_more(model, tried, [place(2, 316)], 1, maximize=True, pareto=True)
    assert better.gain == pytest.approx(0.5 * 0.2, rel=0.05)
    alone = worth_of_more(model, tried, [place(2, 316)], 1, maximize=True)
    assert alone.gain == pytest.approx(0.1, rel=1e-3)
    small = worth_of_more(model, tried, [place(0, 10)], 1, maximize=True, pareto=True)
    assert small.gain == pytest.approx(0.0, abs=1e-6)


def test_a_model_that_has_seen_the_top_expects_less_than_one_that_still_climbs() -> None:
    choices = some_choices(60)
    low = [each for each in choices if each.features["log10_learning_rate"] < -3.2]
    rng = np.random.default_rng(0)

    def worth(seen: Sequence[Any]) -> float:
        told = [
            Observation(
                each.features, each.method, hill(each.features) + 0.01 * rng.standard_normal(),
                params=each.params, repeat_of=str(each.choice),
            )
            for each in seen
        ]  # fmt: skip
        model = fit_model(told, maximize=True)
        return worth_of_more(model, told, choices, 10, maximize=True).in_noise

    assert worth(low) > 1.0
    assert worth(choices) < 0.3
