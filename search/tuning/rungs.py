"""Rungs of successive halving: which trials of an arm go on from one level to the next."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from search.objective import Objective


@dataclass(frozen=True)
class Contender:
    """What a comparison needs to know of a trial.

    `stages` is how many stages its plan has, `length` how many times `train.epochs` it trains: 1,
    or once for each stage.
    """

    arm: str
    params: int
    stages: int = 1
    length: int = 1


@dataclass(frozen=True)
class _Entry:
    gain: float
    params: int

    def beats(self, other: _Entry) -> bool:
        """Whether it is better in one and worse in none of value and parameters."""
        no_worse = self.gain >= other.gain and self.params <= other.params
        return no_worse and (self.gain > other.gain or self.params < other.params)


class Rungs:
    """What trials were measured to be, by arm and level: epochs, or a share of the training rows.

    At a rung the best n / `reduction_factor` of the n trials that have come to it go on, and the
    best always (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020,
    Algorithm 2, decided once for each trial as it comes). So the first trial of an arm that trains
    to its end is never stopped. With `pareto` those go on too that no other at the rung beats in
    value or in parameters without losing in the other.
    """

    def __init__(
        self, objective: Objective, reduction_factor: float, *, pareto: bool = False
    ) -> None:
        self._objective, self._factor, self._pareto = objective, reduction_factor, pareto
        self._rungs: defaultdict[tuple[str, float], dict[str, _Entry]] = defaultdict(dict)
        self._stopped: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def note(self, who: Contender, trial: str, level: float, value: float) -> None:
        """Keep what a trial is at a level; a value that is no number is the worst."""
        gain = self._objective.gain(value)
        entry = _Entry(-math.inf if math.isnan(gain) else gain, who.params)
        self._rungs[who.arm, level].setdefault(trial, entry)

    def note_stop(self, who: Contender, trial: str, level: float) -> None:
        """Keep that a trial was stopped at a level."""
        self._stopped[who.arm][trial] = level

    def forget(self, trial: str) -> None:
        """Let a trial set no bar any more, as one that has failed."""
        for rung in self._rungs.values():
            rung.pop(trial, None)
        for stopped in self._stopped.values():
            stopped.pop(trial, None)

    def goes_on(
        self, who: Contender, trial: str, level: float, *, joins_late: bool = False
    ) -> bool:
        """Whether a trial that was noted at a level is to go on from there.

        One that `joins_late` was compared at no lower level: what its arm has stopped there counts
        as behind it, or it would meet the survivors alone.
        """
        rung = self._rungs[who.arm, level]
        own = rung[trial]
        size = len(rung)
        if joins_late:
            stopped = self._stopped[who.arm].items()
            size += sum(at < level and other not in rung for other, at in stopped)
        others = [entry for other, entry in rung.items() if other != trial]
        ahead = sum(entry.gain > own.gain for entry in others)
        if ahead < max(1, math.floor(size / self._factor)):
            return True
        return self._pareto and not any(entry.beats(own) for entry in others)
