"""Whether one choice measures better than another on test: intervals and p-values.

The difference of two choices varies with the seeds they were trained with and with the test rows
they were measured on. Choices of one sweep share both, so they are compared seed by seed on the
same rows. With d_s the difference at seed s of S, and d its mean:

- seeds: V_s = var(d_s) / S, unbiased, S - 1 degrees of freedom. A bootstrap over so few seeds
  would give (S - 1) / S of it and a normal's tails; its variance is known in closed form, so it is
  corrected instead of drawn.
- rows: V_r from a bootstrap over the n test rows, the same rows for every seed and both choices,
  the metric computed anew: the mean covariance of d_s and d_s' (s not s').
- rows of each seed by itself: V_i, what the rows' variance of d_s exceeds that covariance by,
  divided by S. It is in V_s already, and bounds it from below, so that seeds which happen to agree
  are no certainty.

The interval is d +- sqrt(max(t^2 V_s, u^2 V_i) + u^2 V_r), with the quantiles t and u of Student's
t at S - 1 and n - 1 degrees of freedom (Howe 1974, JASA 69:789). It is exact where either seeds or
rows are all that varies, and too wide in between; p is the level whose interval ends at zero. Over
the methods of a sweep p is adjusted as by Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

from trainables.tasks.measured_rows import MeasuredRows

CONFIDENCE = 0.95
POWER = 0.8
FEWEST_RESAMPLES = 50  # that the metric is defined on

Floats = NDArray[np.float64]
Part = tuple[float, float]
"""A variance of the difference, and its degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """The difference of two means, and the independent parts of its variance.

    Of a part that is known in two ways the larger counts. `seeds` says how many seeds were paired
    (None: they are no pairs), `rows` how many test rows were resampled (None: the rows are not
    known, and the seeds stand for all).
    """

    gap: float
    parts: tuple[tuple[Part, ...], ...]
    seeds: int | None
    rows: int | None

    def half_width(self, level: float) -> float:
        """Half of the interval that misses the true difference in a share `level` of cases."""
        return self._spread(lambda df: float(student.isf(level / 2, df)))

    def interval(self, level: float) -> tuple[float, float]:
        """The interval of the difference that misses it in a share `level` of cases."""
        half = self.half_width(level)
        return self.gap - half, self.gap + half

    @property
    def p_value(self) -> float:
        """The level whose interval ends at zero; 1 where nothing varies."""
        if self.gap == 0 or self.half_width(0.5) == 0:
            return 1.0

        def beyond(level: float) -> float:
            return abs(self.gap) - self.half_width(level)

        smallest = 1e-15
        if beyond(smallest) >= 0:
            return smallest
        return float(brentq(beyond, smallest, 1.0, xtol=1e-16, rtol=1e-9))

    def detectable(self, level: float) -> float:
        """The smallest difference that is told from none at `level` with a probability of 80 %."""
        return self._spread(
            lambda df: float(student.isf(level / 2, df) + student.isf(1 - POWER, df))
        )

    def _spread(self, quantile: Callable[[float], float]) -> float:
        return math.sqrt(
            sum(max(each * quantile(df) ** 2 for each, df in known) for known in self.parts)
        )


def difference(
    values: Mapping[int, float],
    beside: Mapping[int, float],
    drawn: Mapping[int, Floats] | None = None,
    drawn_beside: Mapping[int, Floats] | None = None,
    rows: int | None = None,
) -> Difference | None:
    """How far one choice's test metric is from another's, each given by seed.

    `drawn` holds, by seed, the metric on each of the resamples of the `rows` test rows, the same
    resamples in both; without them the seeds speak for all. None where either has fewer than two
    seeds, or nothing varies that is known.
    """
    if len(values) < 2 or len(beside) < 2:
        return None
    shared = sorted(set(values) & set(beside))
    if drawn is None or drawn_beside is None or rows is None:
        return _by_seeds_alone(values, beside, shared)
    if len(shared) < 2:
        return _unpaired(values, beside, drawn, drawn_beside, rows)
    paired = np.array([values[seed] - beside[seed] for seed in shared])
    covariance = np.cov(np.stack([drawn[seed] - drawn_beside[seed] for seed in shared]))
    seeds = len(shared)
    each = float(np.trace(covariance)) / seeds
    common = (float(covariance.sum()) - seeds * each) / (seeds * (seeds - 1))
    of_rows = max(rows - 1.0, 1.0)
    by_seed = (
        (float(paired.var(ddof=1)) / seeds, seeds - 1.0),
        (max(each - common, 0.0) / seeds, of_rows),
    )
    parts = (by_seed, ((max(common, 0.0), of_rows),))
    return Difference(float(paired.mean()), parts, seeds, rows)


def _by_seeds_alone(
    values: Mapping[int, float], beside: Mapping[int, float], shared: Sequence[int]
) -> Difference | None:
    """The wider of Welch's interval and the paired one; None where no seed tells another value."""
    a, b = np.array(list(values.values())), np.array(list(beside.values()))
    gap = float(a.mean() - b.mean())
    welch = _welch(a, b)
    found = [Difference(gap, ((welch,),), None, None)] if welch[0] else []
    if len(shared) > 1:
        paired = np.array([values[seed] - beside[seed] for seed in shared])
        part = (_no_rounding(float(paired.var(ddof=1))) / len(shared), len(shared) - 1.0)
        if part[0]:
            found.append(Difference(float(paired.mean()), ((part,),), len(shared), None))
    level = 1 - CONFIDENCE
    return max(found, key=lambda each: each.half_width(level), default=None)


def _unpaired(
    values: Mapping[int, float],
    beside: Mapping[int, float],
    drawn: Mapping[int, Floats],
    drawn_beside: Mapping[int, Floats],
    rows: int,
) -> Difference:
    """Seeds that are no pairs: Welch's variance, and all that the rows do to the means."""
    a, b = np.array(list(values.values())), np.array(list(beside.values()))
    means = np.mean(list(drawn.values()), axis=0) - np.mean(list(drawn_beside.values()), axis=0)
    parts = ((_welch(a, b),), ((float(means.var(ddof=1)), max(rows - 1.0, 1.0)),))
    return Difference(float(a.mean() - b.mean()), parts, None, rows)


def _welch(a: Floats, b: Floats) -> Part:
    """Variance and degrees of freedom of the difference of two means (Welch 1947)."""
    one, two = (_no_rounding(float(x.var(ddof=1))) / len(x) for x in (a, b))
    if one + two == 0:
        return 0.0, float(min(len(a), len(b)) - 1)
    df = (one + two) ** 2 / (one**2 / (len(a) - 1) + two**2 / (len(b) - 1))
    return one + two, df


def _no_rounding(variance: float) -> float:
    """A variance, 0 where it is that of equal values and what rounding adds."""
    return 0.0 if variance < 1e-24 else variance


def mean_interval(values: Sequence[float], level: float = 1 - CONFIDENCE) -> Part | None:
    """The interval of a mean over seeds by Student's t; None of fewer than two values."""
    if len(values) < 2:
        return None
    own = np.array(values)
    error = float(own.std(ddof=1)) / math.sqrt(len(own))
    half = float(student.isf(level / 2, len(own) - 1)) * error
    return float(own.mean()) - half, float(own.mean()) + half


def holm(p_values: Sequence[float]) -> list[tuple[float, float]]:
    """Each p-value adjusted for all (Holm 1979), and the level that its own interval is read at.

    The level is that of the step at which Holm's procedure decides it, so that the interval holds
    zero where the adjusted p is above 5 %, and only there.
    """
    alpha, tests = 1 - CONFIDENCE, len(p_values)
    order = sorted(range(tests), key=lambda i: p_values[i])
    found = [(1.0, alpha)] * tests
    adjusted, level, rejected = 0.0, alpha / max(tests, 1), True
    for step, i in enumerate(order):
        adjusted = max(adjusted, min(1.0, (tests - step) * p_values[i]))
        if rejected:
            level = alpha / (tests - step)
            rejected = p_values[i] < level
        found[i] = (adjusted, level)
    return found


def drawn_values(runs: Sequence[MeasuredRows]) -> list[Floats] | None:
    """The metric of each run on resamples of the test rows, the same for all runs.

    The runs must be of the same rows; those of a suite are drawn within each member. A resample
    that the metric is not defined on is left out of every run; None where hardly one is left.
    """
    rows = len(runs[0])
    resamples = min(run.resamples for run in runs)
    generator = np.random.default_rng(0)
    found: list[list[Floats]] = [[] for _ in runs]
    at_once = max(1, min(resamples, 5_000_000 // max(rows, 1)))
    for start in range(0, resamples, at_once):
        drawn = runs[0].draw(generator, min(at_once, resamples - start))
        for run, parts in zip(runs, found, strict=True):
            parts.append(run.on(drawn))
    values = np.stack([np.concatenate(parts) for parts in found])
    values = values[:, np.isfinite(values).all(axis=0)]
    return list(values) if values.shape[1] >= FEWEST_RESAMPLES else None
