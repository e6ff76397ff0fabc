"""Choices drawn evenly from a space, as a model and a user see them.

A plan of a large base costs a good part of a second, and does not depend on the learning rate. So
each is made once and stands for the choices at several rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

from spaces.choice import Choice
from spaces.domain import Evenly, closest, suggest
from spaces.errors import UsageError
from spaces.features import moved, plan_features
from spaces.planner import Planner
from spaces.search_space import Arm, SearchSpace

PLANS, RATES = 64, 6
"""Plans over all arms, and learning rates of each."""
NEAR = (0.5, 0.7, 1.4, 2.0)
"""Of a good choice these multiples of its learning rate may be better."""
LEADERS = 8
"""So many of the tried choices are good ones."""


@dataclass(frozen=True)
class Drawn:
    """A choice that may be trained; `params` are its trainable parameters."""

    choice: Choice
    arm: str
    features: Mapping[str, float]
    params: int

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.choice.method


def draws(
    space: SearchSpace,
    planner: Planner,
    arms: Sequence[Arm],
    *,
    takes: Callable[[int], bool] = lambda params: True,
    plans: int = PLANS,
    rates: int = RATES,
    seed: int = 0,
) -> list[Drawn]:
    """Choices of every arm in turn that can be a plan, and whose parameters the search `takes`.

    The same arguments give the same choices; there are fewer where some cannot be trained.
    """
    drawing = {arm.name: _EvenlyOf(arm, seed + 7919 * i) for i, arm in enumerate(arms)}
    found: dict[str, Drawn] = {}
    for number in range(plans if arms else 0):
        arm = arms[number % len(arms)]
        for drawn in _at_rates(space, planner, arm, drawing[arm.name], takes, rates):
            found.setdefault(repr(drawn.choice), drawn)
    return list(found.values())


def at_other_rates(space: SearchSpace, tried: Sequence[Drawn]) -> list[Drawn]:
    """Choices of the space with the plan of a tried one and a learning rate near its own."""
    found: dict[str, Drawn] = {}
    for each in tried:
        domain = space.domains.get(each.method, {}).get("learning_rate")
        if domain is None:
            continue
        for factor in NEAR:
            rate = float(closest(domain, factor * each.choice.learning_rate))
            choice = each.choice.model_copy(update={"learning_rate": rate})
            other = replace(each, choice=choice, features=at_rate(each.features, rate))
            found.setdefault(repr(choice), other)
    own = {repr(each.choice) for each in tried}
    return [other for text, other in found.items() if text not in own]


def at_rate(features: Mapping[str, float], learning_rate: float) -> dict[str, float]:
    """The features of the same plan at another learning rate."""
    return moved(features, log10(learning_rate) - features["log10_learning_rate"])


def _at_rates(
    space: SearchSpace,
    planner: Planner,
    arm: Arm,
    drawing: _EvenlyOf,
    takes: Callable[[int], bool],
    rates: int,
) -> Iterator[Drawn]:
    try:
        choice = space.suggest(drawing)
        plan = planner.plan(choice)
    except UsageError:  # it cannot be a plan of this base
        return
    if not takes(plan.trainable_params):
        return
    features = plan_features(plan, choice.learning_rate, planner.profile)
    domain = space.domains[choice.method]["learning_rate"]
    for number in range(rates):
        rate = choice.learning_rate
        if number:
            rate = float(suggest(domain, drawing, f"{choice.method}.learning_rate"))
        other = choice.model_copy(update={"learning_rate": rate})
        yield Drawn(other, arm.name, at_rate(features, rate), plan.trainable_params)


class _EvenlyOf(Evenly):
    """Draws choices of one arm."""

    def __init__(self, arm: Arm, seed: int) -> None:
        super().__init__(seed)
        self._fixed = arm.params

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the `choices`; of what makes the arm, its value."""
        return self._fixed.get(name, super().suggest_categorical(name, choices))
