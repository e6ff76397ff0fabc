"""What a choice holds: the rule by which choices are ranked, wherever they are.

A choice that was trained with several seeds has a mean, and one that was trained once may have been
lucky. So a choice is ranked by what it holds: its mean over seeds, less one standard error. Where
any of its seeds has collapsed (one class is predicted for every row of dev), it comes after all
choices of which none has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev

from search.objective import Objective


@dataclass(frozen=True)
class Seeds:
    """What a choice has measured on dev: the value of each seed, and how many have collapsed."""

    values: Sequence[float]
    collapsed: int = 0

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; 0 of a single seed, which has none."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def holds(self, noise: float, objective: Objective) -> float:
        """The value that can be relied on: mean - s / sqrt(n), or + where less is better.

        s is the deviation of its n seeds, or the `noise` of its sweep where that is larger: few
        seeds may agree by chance, and one seed has no deviation.
        """
        error = max(self.deviation, noise) / sqrt(len(self.values))
        return self.mean - error if objective.mode == "max" else self.mean + error

    def rank(self, noise: float, objective: Objective) -> tuple[bool, float]:
        """A key that sorts choices, best first."""
        return self.collapsed > 0, -objective.gain(self.holds(noise, objective))


def noise_of(every: Iterable[Seeds]) -> float:
    """The noise between seeds of a sweep's choices: the median of their standard deviations.

    Of those that have several seeds and did not collapse: a collapse is no noise around a value.
    The median, for beside a cliff the deviation may be any. 0 where there are no such choices, and
    then every choice has its plain mean.
    """
    known = [each.deviation for each in every if len(each.values) > 1 and not each.collapsed]
    return median(known) if known else 0.0
