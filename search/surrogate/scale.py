"""The scale on which a metric is modelled: standardised, more is better, the worst drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BEND = 2.0
"""So many widths below the middle, values are drawn in: a run that collapsed is bad, and how bad
does not matter."""
_OTHERS = 3
"""The width of related sweeps weighs as much as so many observations."""


@dataclass(frozen=True)
class Scale:
    """A value v stands for z = sign * (v - middle) / width, and for z below -c for
    -c - log(1 - c - z)."""

    middle: float
    width: float
    sign: int

    @classmethod
    def of(cls, values: Sequence[float], *, maximize: bool, beside: Sequence[Scale] = ()) -> Scale:
        """The scale of some values; with few of them the width leans on that of scales `beside`."""
        known = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
        sign = 1 if maximize else -1
        others = exp(fmean(log(scale.width) for scale in beside)) if beside else None
        if known.size == 0:
            middle = fmean(scale.middle for scale in beside) if beside else 0.0
            return cls(middle, others or 1.0, sign)
        middle = float(np.median(known))
        own = float(known.std())
        if others is not None:
            n = known.size - 1
            own = float(np.sqrt((n * own**2 + _OTHERS * others**2) / (n + _OTHERS)))
        return cls(middle, own or 1.0, sign)

    def done(self, values: Sequence[float]) -> Floats:
        """Values on the scale; one that is not finite is as bad as the worst."""
        z = self.sign * (np.asarray(values, dtype=np.float64) - self.middle) / self.width
        z = np.where(np.isfinite(z), z, np.min(z[np.isfinite(z)], initial=-_BEND))
        excess = np.maximum(-_BEND - z, 0.0)
        bent: Floats = np.where(z < -_BEND, -_BEND - np.log1p(excess), z)
        return bent

    def undone(self, z: Any) -> Floats:
        """The values that stand there."""
        z = np.asarray(z, dtype=np.float64)
        excess = np.minimum(np.maximum(-_BEND - z, 0.0), 3.0)
        straight = np.where(z < -_BEND, -_BEND - np.expm1(excess), z)
        return np.asarray(self.middle + self.sign * self.width * straight)
