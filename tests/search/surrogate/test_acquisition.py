"""Expected improvements against brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from search.surrogate.acquisition import (
    Outlook,
    expected_area_improvement,
    expected_improvement,
)

SAMPLES, KNOWN, CANDIDATES, DRAWS = 5, 4, 6, 20_000


def outlook(seed: int) -> Outlook:
    rng = np.random.default_rng(seed)
    return Outlook(
        rng.normal(0, 1, (SAMPLES, KNOWN)),
        rng.normal(0, 1, (SAMPLES, CANDIDATES)),
        rng.uniform(0.05, 1, CANDIDATES),
    )


def area_under(worth: np.ndarray, params: np.ndarray, reference: tuple[float, float]) -> float:
    """The area that points cover, in cells: every cell by whether a point reaches it."""
    floor, largest = reference
    xs = np.unique([*np.minimum(params, largest), largest])
    total = 0.0
    for left, right in pairwise(xs):
        reached = worth[params <= left]
        total += (right - left) * max(0.0, float(np.max(reached, initial=floor)) - floor)
    return total


def drawn_candidates(found: Outlook, sample: int) -> np.ndarray:
    rng = np.random.default_rng(sample)
    return found.mean[sample] + found.sd * rng.standard_normal((DRAWS, CANDIDATES))


def test_the_improvement_is_the_mean_of_what_draws_improve_by() -> None:
    found = outlook(0)
    brute = np.mean(
        [
            np.maximum(drawn_candidates(found, s) - found.known[s].max(), 0).mean(axis=0)
            for s in range(SAMPLES)
        ],
        axis=0,
    )
    assert expected_improvement(found) == pytest.approx(brute, abs=0.01)


def test_the_area_is_the_mean_of_what_draws_add_to_the_front() -> None:
    seed = 1
    found = outlook(seed)
    rng = np.random.default_rng(seed)
    known_params = rng.uniform(2, 5, KNOWN)
    params = np.append(rng.uniform(2, 5, CANDIDATES - 1), known_params[0])
    reference = -0.5, 4.5
    brute = np.zeros(CANDIDATES)
    for s in range(SAMPLES):
        before = area_under(found.known[s], known_params, reference)
        for candidate in range(CANDIDATES):
            for draw in drawn_candidates(found, s)[:100, candidate]:
                worth = np.append(found.known[s], draw)
                each = np.append(known_params, params[candidate])
                brute[candidate] += area_under(worth, each, reference) - before
    brute /= SAMPLES * 100
    got = expected_area_improvement(found, known_params, params, reference)
    assert got == pytest.approx(brute, abs=0.2)
    assert got.argmax() == brute.argmax()


def test_without_doubt_the_area_is_exact() -> None:
    found = Outlook(np.array([[1.0, 2.0]]), np.array([[1.5, 0.5, 3.0]]), np.zeros(3))
    got = expected_area_improvement(
        found, np.array([3.0, 4.0]), np.array([2.5, 3.5, 6.0]), (0.0, 5.0)
    )
    # The first covers 0.5 x 1.5 to its right and 1.0 x 0.5 more where nothing was.
    assert got == pytest.approx([0.5 * 1.5 + 1.0 * 0.5, 0.0, 0.0])
