"""What training a candidate is expected to add to what has been found: noisy expected improvement,
or improvement of the area under a front of metric and parameters.

Both are means over joint samples of what the choices are worth that have been trained, or are being
trained, so that neither a lucky seed nor a trial that still runs is taken at its word. Given a
sample, a candidate's worth is normal, and the improvement has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outlook:
    """What choices may be worth, more is better: joint samples of those that have been trained, and
    of each candidate its distribution given a sample, which is normal."""

    known: Floats
    """[samples, known choices]."""
    mean: Floats
    """[samples, candidates]."""
    sd: Floats
    """[candidates]: the same for every sample."""


def expected_improvement(outlook: Outlook) -> Floats:
    """By how much each candidate is expected to be better than the best known choice.

    The mean over the samples of E[max(0, candidate - best known)], the noisy expected improvement
    of Letham et al. (2019). [candidates], on the scale of the samples.
    """
    best = outlook.known.max(axis=1, keepdims=True)
    gain: Floats = _excess(outlook.mean, outlook.sd, best).mean(axis=0)
    return gain


def expected_area_improvement(
    outlook: Outlook,
    known_log_params: Floats,
    log_params: Floats,
    reference: tuple[float, float],
) -> Floats:
    """By how much each candidate is expected to extend the area under the front.

    A choice covers what is worth less than it, above `reference[0]`, with as many parameters or
    more, up to `reference[1]`. The mean over the samples of the expected area that the candidate
    alone covers: the noisy expected hypervolume improvement of Daulton et al. (2021) where one
    objective is exact. With P the parameters it is the integral over log10 P, from the candidate's
    on, of E[max(0, candidate - front at P)].

    Args:
        outlook: of the known choices and the candidates.
        known_log_params, log_params: log10 of their trainable parameters.
        reference: the worth and the log10 parameters of the worst corner.

    Returns:
        [candidates], in the scale of the samples times decades of parameters.
    """
    floor, largest = reference
    order = np.argsort(known_log_params, kind="stable")
    heights = np.maximum.accumulate(np.maximum(outlook.known[:, order], floor), axis=1)
    steps = np.concatenate([np.full((len(heights), 1), floor), heights], axis=1)
    edges = np.minimum(known_log_params[order], largest)
    starts, ends = np.concatenate([[-np.inf], edges]), np.concatenate([edges, [largest]])
    area = np.zeros(outlook.mean.shape)
    for start, end, step in zip(starts, ends, steps.T, strict=True):
        width = np.maximum(end - np.maximum(log_params, start), 0.0)
        reached = width > 0
        if reached.any():
            excess = _excess(outlook.mean[:, reached], outlook.sd[reached], step[:, None])
            area[:, reached] += width[reached] * excess
    mean: Floats = area.mean(axis=0)
    return mean


def _excess(mean: Floats, sd: Floats, threshold: Floats) -> Floats:
    """E[max(0, Z - threshold)] of Z normal: (m - t) Phi(z) + s phi(z) with z = (m - t) / s."""
    above = mean - threshold
    z = above / np.maximum(sd, 1e-12)
    found: Floats = above * ndtr(z) + sd * np.exp(-(z**2) / 2) / sqrt(2 * pi)
    return np.maximum(found, 0.0)
