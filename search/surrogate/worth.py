"""What the next trials of a search are expected to gain, beside the noise between seeds.

A search is worth going on where the choice that one would take at its end is expected to become
better. The next n trials are drawn as a search would choose them, each the best of the candidates
in one joint sample of the model (Thompson). What they would teach is the batch knowledge gradient
(Wu and Frazier 2016, arXiv:1606.04414) of this batch: before the trials one takes the tried choice
of the highest mean mu; after them, with values y = f + noise, the choice, tried before or now, of
the highest mean mu', and over what the model holds possible now

    mu' ~ N(mu, S_T' (S_TT + noise^2 I)^-1 S_T),

S the posterior covariance and T the batch. The gain is the mean of max mu' less max mu. Unlike the
expected improvement of a single value it does not take luck for progress: where all choices are
alike, the values of ten more differ by their noise, and no mean moves.

Where the number of parameters is a second objective, one takes the best choice within a budget of
parameters. The gain is then the mean over budgets, even in the logarithm of their parameters, from
the smallest to the largest tried choice: the hypervolume over (log parameters, metric) that is
gained between them, divided by its width. What is smaller than all that was tried gains nothing:
no choice is there to be better than.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from search.surrogate.model import PlanModel

Floats = NDArray[np.float64]

BUDGETS = 32
_SAMPLES = 1024
_TRIED = 80
"""Of the tried choices so many of the highest means may yet be the best."""


class Sized(Protocol):
    """A choice as a model knows it, and what it costs."""

    @property
    def features(self) -> Mapping[str, float]:
        """Those of spaces/features.py."""

    @property
    def method(self) -> str:
        """The name of its method."""

    @property
    def params(self) -> int:
        """Trainable parameters of its plan."""


@dataclass(frozen=True)
class Worth:
    """What the next `trials` trials are expected to add to the metric of the best choice.

    Both numbers are in the metric's own units; `gain` is not negative, whatever the direction.
    """

    trials: int
    gain: float
    noise_sd: float
    """Standard deviation between the seeds of one choice."""

    @property
    def in_noise(self) -> float:
        """The gain in standard deviations of the noise."""
        return self.gain / self.noise_sd


def worth_of_more(
    model: PlanModel,
    tried: Sequence[Sized],
    candidates: Sequence[Sized],
    trials: int,
    *,
    maximize: bool,
    pareto: bool = False,
    seed: int = 0,
) -> Worth:
    """What the next trials are expected to gain.

    Args:
        model: as it has learned from what was tried.
        tried: the choices that have a complete trial, each once.
        candidates: choices that may be tried.
        trials: how many of them are.
        maximize: whether more of the metric is better.
        pareto: whether fewer parameters are a second objective.

    Raises:
        ValueError: nothing was tried, or there is no candidate.
    """
    if not tried or not candidates:
        raise ValueError("it takes a tried choice and a candidate at least")
    rng = np.random.default_rng(seed)
    sign = 1.0 if maximize else -1.0
    utility = _Utility(budgets_of(tried, pareto=pareto))
    noise = max(model.noise_sd, 1e-12)

    batch = _thompson(sign * model.sample(candidates, trials, rng), candidates, utility, rng)
    tried_mean = sign * model.predict(tried)[0]
    kept = _worth_keeping(tried, tried_mean, utility)
    points = [*(tried[i] for i in kept), *(candidates[i] for i in batch)]
    sizes = np.array([each.params for each in points], dtype=np.float64)

    drawn = sign * model.sample(points, _SAMPLES, rng)
    mean = np.concatenate([tried_mean[kept], sign * model.predict(points[len(kept) :])[0]])
    covariance = np.atleast_2d(np.cov(drawn, rowvar=False))
    new = slice(len(kept), len(points))
    observed = covariance[new, new] + noise**2 * np.eye(len(batch))
    moves = np.linalg.solve(np.linalg.cholesky(observed), covariance[new, :]).T
    means_then = mean + rng.standard_normal((_SAMPLES, len(batch))) @ moves.T

    now = utility(mean[None, : len(kept)], sizes[: len(kept)])[0]
    then = utility(means_then, sizes).mean()
    return Worth(trials, max(0.0, float(then - now)), noise)


def budgets_of(tried: Sequence[Sized], *, pareto: bool) -> Floats:
    """Budgets of parameters from that of the smallest tried choice to that of the largest, even in
    their logarithm; without a second objective one that all fit in."""
    if not pareto:
        return np.array([np.inf])
    logs = np.log([max(1, each.params) for each in tried])
    return np.exp(np.linspace(logs.min(), logs.max(), BUDGETS)) * (1 + 1e-9)


@dataclass(frozen=True)
class _Utility:
    """What one has of choices by their means: the best, on average over `budgets`."""

    budgets: Floats

    def __call__(self, means: Floats, sizes: Floats) -> Floats:
        """Of every row of means [n, choices]; more is better, and some choice fits each budget."""
        fits = sizes[None, :] <= self.budgets[:, None]
        best = [means[:, fit].max(axis=1) for fit in fits]
        return np.asarray(np.mean(best, axis=0))


def _thompson(
    samples: Floats, candidates: Sequence[Sized], utility: _Utility, rng: np.random.Generator
) -> list[int]:
    """Of every sample the best candidate that fits a budget, each candidate once."""
    sizes = np.array([each.params for each in candidates], dtype=np.float64)
    taken: dict[int, None] = {}
    for sample in samples:
        fits = sizes <= rng.choice(utility.budgets)
        fits[list(taken)] = False
        if fits.any():
            taken.setdefault(int(np.flatnonzero(fits)[sample[fits].argmax()]))
    return list(taken) or [int(sizes.argmin())]


def _worth_keeping(tried: Sequence[Sized], mean: Floats, utility: _Utility) -> list[int]:
    """The best by their means, and of every budget the best."""
    sizes = np.array([each.params for each in tried], dtype=np.float64)
    kept = dict.fromkeys(int(i) for i in np.argsort(-mean)[:_TRIED])
    for budget in utility.budgets:
        within = np.flatnonzero(sizes <= budget)
        if within.size:
            kept.setdefault(int(within[mean[within].argmax()]))
    return list(kept)
