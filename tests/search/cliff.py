"""A search on paper beside a cliff: the best choices are one step from those that may collapse.

The value of a choice rises with its learning rate up to where training falls apart. There it is
bimodal: the good value, or with a chance that rises from 0 to 1 over the cliff's width that of one
class for all rows. The search itself is a simple one; what is repeated and what is taken for best
is decided by the study's own code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.objective import Objective
from search.study.ranking import next_repeat, ranked
from search.study.standing import Standings
from search.study.study import (
    ARM,
    CHOICE,
    COLLAPSED,
    METHOD,
    REPEAT,
    SEED,
    TRAINABLE_PARAMS,
    TRAINING,
)

ACCURACY = Objective("accuracy", "max")
METHODS = ("lora", "pilora", "taso", "sensitivity", "joint")
ONE_CLASS = 0.507
Point = tuple[int, float, float]


@dataclass
class Cliff:
    """Five methods, each with a level and a cliff of its own; `noise` is between seeds."""

    rng: np.random.Generator
    noise: float = 0.006
    width: float = 0.06
    has_cliff: bool = True

    def __post_init__(self) -> None:
        self.level = 0.84 + self.rng.normal(0, 0.006, len(METHODS))
        self.edge = self.rng.uniform(0.55, 0.8, len(METHODS))

    def good(self, point: Point) -> float:
        method, rate, other = point
        past = rate - self.edge[method] - 0.04
        return float(self.level[method] - 0.35 * past**2 - 0.02 * (other - 0.5) ** 2)

    def chance(self, point: Point) -> float:
        """Of a collapse."""
        if not self.has_cliff:
            return 0.0
        method, rate, _ = point
        return float(np.clip((rate - self.edge[method]) / (2 * self.width) + 0.5, 0, 1))

    def mean(self, point: Point) -> float:
        chance = self.chance(point)
        return (1 - chance) * self.good(point) + chance * ONE_CLASS

    def trained(self, point: Point) -> tuple[float, bool]:
        """Value and whether it has collapsed, with a fresh seed."""
        if self.rng.random() < self.chance(point):
            return ONE_CLASS, True
        return self.good(point) + self.rng.normal(0, self.noise), False

    def drawn(self, number: int, tried: dict[Point, float]) -> Point:
        """The next point of a search: near the best so far of its method, or anywhere."""
        method = number % len(METHODS)
        own = [point for point in tried if point[0] == method]
        if len(own) < 2 or self.rng.random() < 0.4:
            return method, self.rng.random(), self.rng.random()
        _, rate, other = max(own, key=lambda point: tried[point])
        moved = np.clip(self.rng.normal([rate, other], [0.1, 0.2]), 0, 1)
        return method, float(moved[0]), float(moved[1])


@dataclass(frozen=True)
class Answer:
    """What a search gives as its best, by each rule: its mean, and the best mean that it tried."""

    by_value: float
    by_holding: float
    best: float


def searched(cliff: Cliff, trials: int, top: int, seeds: int) -> Answer:
    """A whole search, whose last `top` * `seeds` trials repeat the leaders. By value: the best
    value of all `trials`, each a choice of its own."""
    study = optuna.create_study(direction="maximize")
    points: dict[str, Point] = {}
    tried: dict[Point, float] = {}
    for number in range(trials - top * seeds):
        point = cliff.drawn(number, tried)
        points[str(number)] = point
        tried[point] = told(study, cliff, str(number), point)
    standings = Standings(study)
    while (again := next_repeat(standings.now(), ACCURACY, top, seeds)) is not None:
        first, repeat = again
        training = first.user_attrs[TRAINING]
        told(study, cliff, training, points[training], repeat)
    best = ranked(study.get_trials(deepcopy=False), ACCURACY).trainings[0]
    chosen = points[best.first.user_attrs[TRAINING]]
    for number in range(trials - top * seeds, trials):
        point = cliff.drawn(number, tried)
        tried[point] = cliff.trained(point)[0]
    means = [cliff.mean(point) for point in points.values()]
    lucky = max(tried, key=lambda point: tried[point])
    return Answer(cliff.mean(lucky), cliff.mean(chosen), max(means))


def told(
    study: optuna.Study, cliff: Cliff, training: str, point: Point, repeat: int | None = None
) -> float:
    """Train a point on paper and tell the study; returns its value."""
    value, collapsed = cliff.trained(point)
    study.add_trial(trial_of(METHODS[point[0]], training, value, collapsed, repeat))
    return value


def trial_of(
    method: str,
    training: str,
    value: float,
    collapsed: bool = False,
    repeat: int | None = None,
    params: int = 100,
    choice: dict[str, Any] | None = None,
) -> FrozenTrial:
    """A complete trial as the study has it."""
    attributes: dict[str, Any] = {
        CHOICE: json.dumps(choice or {"method": method}),
        METHOD: method,
        ARM: method,
        TRAINABLE_PARAMS: params,
        TRAINING: training,
        SEED: 0 if repeat is None else 999 + repeat,
    }
    if repeat is not None:
        attributes[REPEAT] = repeat
    if collapsed:
        attributes[COLLAPSED] = True
    return create_trial(state=TrialState.COMPLETE, value=value, user_attrs=attributes)


def answers(searches: int, trials: int, top: int, seeds: int, **surface: Any) -> list[Answer]:
    """Those of so many searches, each on a surface of its own."""
    return [
        searched(Cliff(np.random.default_rng(seed), **surface), trials, top, seeds)
        for seed in range(searches)
    ]


@dataclass(frozen=True)
class Kept:
    """What searches keep of the best mean that they tried: in which share of them all of it but
    twice the noise, and how much they lack on average."""

    within: float
    lacks: float

    @classmethod
    def of(cls, found: list[Answer], rule: str, noise: float) -> Kept:
        """By one rule, the name of an answer's field."""
        lost = np.array([each.best - getattr(each, rule) for each in found])
        return cls(float((lost <= 2 * noise).mean()), float(lost.mean()))

    def __str__(self) -> str:
        return f"{self.within:.0%}, lacks {self.lacks:.3f}"


SURFACES: dict[str, dict[str, Any]] = {
    "a steep cliff": {},
    "a wide cliff": {"width": 0.15},
    "no cliff": {"has_cliff": False},
}


def main() -> None:
    """Print the table of docs/sweep.md."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, surface in SURFACES.items():
        for trials, top, seeds in ((24, 2, 3), (16, 2, 2), (12, 2, 2)):
            found = answers(200, trials, top, seeds, **surface)
            by_value, by_holding = (
                Kept.of(found, rule, Cliff.noise) for rule in ("by_value", "by_holding")
            )
            print(f"| {name}, {trials} | {by_value} | {by_holding} |", flush=True)


if __name__ == "__main__":
    main()
