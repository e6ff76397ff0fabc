"""The model of plans against a peer, and what it makes of tuners, failures and earlier sweeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from search.surrogate.model import RELATED, PlanModel, fit_model
from search.surrogate.observation import Observation, RelatedSweep
from spaces.features import FEATURES, SPREADS


def features_at(place: Sequence[float]) -> dict[str, float]:
    """Features that stand `place` spreads beside a middle."""
    return {name: 1.0 + SPREADS[name] * at for name, at in zip(FEATURES, place, strict=True)}


def hill(place: np.ndarray) -> float:
    """Accuracy: best at one learning rate, and a little better with more parameters."""
    return float(0.6 + 0.05 * place[0] - 0.15 * (place[1] - 0.7) ** 2)


def observed(
    n: int, seed: int, worth: Callable[[np.ndarray], float] = hill, noise: float = 0.01
) -> list[Observation]:
    rng = np.random.default_rng(seed)
    places = rng.uniform(-1.5, 1.5, (n, len(FEATURES)))
    return [
        Observation(features_at(place), "lora", worth(place) + noise * rng.standard_normal())
        for place in places
    ]


def true_values(observations: Sequence[Observation]) -> np.ndarray:
    return np.array([each.value for each in observations])


def test_the_posterior_is_that_of_a_peer_with_the_same_hyperparameters() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    known = observed(30, 0, lambda place: 0.5 + 0.1 * float(np.sin(place[1])))
    asked = observed(12, 1)
    model = fit_model(known, maximize=True)
    mean, sd = model.predict(asked)

    columns = [*FEATURES]
    lengths = model.lengthscales()
    signal, offset, noise, middle, spread = model.hyperparameters()
    X, Z = ([[o.features[name] for name in columns] for o in each] for each in (known, asked))
    kernel = ConstantKernel(signal) * Matern([lengths[name] for name in columns], nu=2.5)
    peer = GaussianProcessRegressor(
        kernel + ConstantKernel(offset), alpha=noise, optimizer=None
    ).fit(X, (true_values(known) - middle) / spread)
    peer_mean, peer_sd = peer.predict(Z, return_std=True)

    assert mean == pytest.approx(middle + spread * peer_mean, abs=1e-6)
    assert sd == pytest.approx(spread * peer_sd, rel=1e-4)
    draws = model.sample(asked, 4000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx(mean, abs=0.01)
    assert draws.std(axis=0) == pytest.approx(sd, rel=0.1)


def test_it_learns_the_hill_and_the_noise() -> None:
    model = fit_model(observed(60, 0), maximize=True)
    asked = observed(100, 1, noise=0.0)
    mean, sd = model.predict(asked)
    error = mean - true_values(asked)
    assert np.std(error) < 0.3 * np.std(true_values(asked))
    assert np.mean(np.abs(error) < 2 * sd) > 0.8
    assert 0.003 < model.noise_sd < 0.03
    moved = model.sensitivity(asked)
    assert max(moved, key=lambda name: moved[name]) == "log10_learning_rate"
    assert sum(moved.values()) == pytest.approx(1.0)


def test_a_metric_that_falls_is_the_same_turned_over() -> None:
    known, asked = observed(25, 0), observed(5, 1)
    fallen = [replace(each, value=-each.value) for each in known]
    mean, sd = fit_model(known, maximize=True).predict(asked)
    turned, spread = fit_model(fallen, maximize=False).predict(asked)
    assert turned == pytest.approx(-mean, abs=1e-8)
    assert spread == pytest.approx(sd, abs=1e-8)


def test_a_tuner_has_an_offset_of_its_own() -> None:
    blocks = observed(30, 0)
    tuners = []
    for each in observed(8, 1):
        own = {name: each.features[name] for name in ("log10_params", "log10_learning_rate")}
        tuners.append(Observation(own, "bitfit", each.value - 0.5))
    mean, _ = fit_model([*blocks, *tuners], maximize=True).predict([*tuners, *blocks])
    assert np.mean(mean[8:]) - np.mean(mean[:8]) > 0.3
    assert np.mean(np.abs(mean[8:] - true_values(blocks))) < 0.05


def test_one_lucky_seed_beside_a_cliff_is_not_believed_once_others_fall() -> None:
    def cliff(place: np.ndarray) -> float:
        return hill(place) if place[1] < 0.9 else 0.3

    known = observed(30, 0, cliff)
    beyond = features_at([0, 1.2, *[0] * (len(FEATURES) - 2)])
    seeds = [Observation(beyond, "lora", value) for value in (0.65, 0.3, 0.3)]
    model = fit_model([*known, *seeds], maximize=True)
    (mean,), _ = model.predict(seeds[:1])
    assert mean < 0.5
    best = known[int(np.argmax(true_values(known)))]
    assert model.predict([best])[0][0] > 0.55


def test_a_trial_that_failed_makes_its_place_bad() -> None:
    known = observed(20, 0)
    place = Observation(features_at([0, 0.5, *[0] * (len(FEATURES) - 2)]), "lora", float("nan"))
    (before,), _ = fit_model(known, maximize=True).predict([place])
    (after,), _ = fit_model([*known, place, place], maximize=True).predict([place])
    assert after < before - 0.02


def test_a_share_of_the_rows_tells_of_all_of_them() -> None:
    cheap = [
        replace(each, value=each.value - 0.2, rows=0.1) for each in observed(25, 0, noise=0.003)
    ]
    full = observed(6, 1, noise=0.003)
    asked = observed(60, 2, noise=0.0)
    mean, _ = fit_model([*cheap, *full], maximize=True).predict(asked)
    alone, _ = fit_model(full, maximize=True).predict(asked)
    truth = true_values(asked)
    assert spearmanr(mean, truth)[0] > max(0.95, spearmanr(alone, truth)[0])
    assert np.mean(mean - truth) == pytest.approx(0.0, abs=0.06)


def related(worth: Callable[[np.ndarray], float], maximized: bool = True) -> RelatedSweep:
    """A sweep on another scale."""
    found = [replace(each, value=40 * each.value) for each in observed(60, 7, worth)]
    return RelatedSweep("run", "base", maximized, tuple(found))


def upside_down(place: np.ndarray) -> float:
    return -hill(place)


def ranks(model: PlanModel) -> float:
    asked = observed(80, 3, noise=0.0)
    return float(spearmanr(model.predict(asked)[0], true_values(asked))[0])


def test_a_good_history_ranks_choices_before_the_first_trial() -> None:
    history = [related(hill)]
    assert ranks(fit_model([], maximize=True, history=history)) > 0.9
    known = observed(6, 4)
    assert ranks(fit_model(known, maximize=True, history=history)) > 0.9
    assert ranks(fit_model(known, maximize=True)) < 0.8


def test_a_history_that_misleads_is_given_up() -> None:
    history = [related(upside_down)]
    assert ranks(fit_model([], maximize=True, history=history)) < -0.9
    known = observed(20, 4)
    model = fit_model(known, maximize=True, history=history)
    assert model.correlations()[0] < 0.3
    assert ranks(model) > ranks(fit_model(known, maximize=True)) - 0.1


def test_a_history_in_a_metric_that_falls_is_turned_over() -> None:
    assert ranks(fit_model([], maximize=True, history=[related(upside_down, False)])) > 0.9


def test_of_a_long_history_a_part_is_taken() -> None:
    long = RelatedSweep("run", "task", True, tuple(observed(400, 7)))
    model = fit_model(observed(3, 0), maximize=True, history=[long, long])
    assert model.size == 3 + RELATED


def test_hyperparameters_may_be_taken_over() -> None:
    known, asked = observed(25, 0), observed(5, 1)
    model = fit_model(known, maximize=True)
    again = fit_model(known, maximize=True, like=model)
    assert again.predict(asked)[0] == pytest.approx(model.predict(asked)[0])


def test_it_leaves_torch_as_it_is_and_warns_of_nothing(recwarn: Any) -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    warnings.simplefilter("always")
    model = fit_model([*observed(5, 0), *observed(1, 0)], maximize=True)
    model.predict(observed(2, 1))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert not recwarn.list


def test_without_an_observation_there_is_no_model() -> None:
    with pytest.raises(ValueError, match="no observation"):
        fit_model([], maximize=True)
