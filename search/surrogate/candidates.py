"""What might be trained next: choices drawn evenly from every arm's space, and near good ones.

A plan costs milliseconds, and hundreds of them of a large base; its features do not. So a few plans
are made at each proposal and kept for the next ones, and each stands for many choices: what another
learning rate or another alpha does to its features is known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log, log10
from typing import Any

import numpy as np

from spaces.choice import Choice
from spaces.errors import UsageError
from spaces.features import moved, plan_features
from spaces.planner import Planner
from spaces.search_space import Arm, SearchSpace

EVEN = 4
"""Plans that are drawn evenly at each proposal, of a base with up to `MODULES` target modules."""
NEAR = 8
"""Plans that are drawn near good choices at each step of a proposal."""
MODULES = 48
"""Of a base with more target modules fewer plans are made, for each costs more."""
TURNS = 40
"""For how many proposals what is drawn evenly stays: so many times `EVEN` plans there are."""
VARIANTS = 6
"""Choices that a plan stands for: learning rates and alphas."""

_REACH = 0.15
"""How far a near choice is moved in one of its parameters, as a share of the parameter's range."""
_MOVED = 0.4
"""How many of its parameters are moved, as a share."""
_NEAR_START = 0.6
"""Of the learning rates and alphas that its plan is tried with, how many are near its own."""
_KEPT = 5_000
"""Plans whose features are remembered."""


@dataclass(frozen=True)
class Candidate:
    """A choice that may be trained, as a space's parameters and as a model sees it."""

    params: Mapping[str, Any]
    arm: str
    method: str
    features: Mapping[str, float]
    trainable_params: int


class Pool:
    """The candidates of one search: the same ones whenever the same are asked for.

    Args:
        space: what may be chosen.
        arms: its arms, by name.
        planner: makes the plans.
        seed: of the draws.
        keys: what makes arms, those of `search.arms`.
    """

    def __init__(
        self,
        space: SearchSpace,
        arms: Mapping[str, Arm],
        planner: Planner,
        seed: int,
        keys: Sequence[str] = (),
    ) -> None:
        self._space, self._arms, self._planner = space, arms, planner
        self._seed, self._keys = seed, keys
        self._features: OrderedDict[str, tuple[Mapping[str, float], int]] = OrderedDict()
        self._drawn_evenly: dict[int, list[Candidate]] = {}
        share = min(1.0, MODULES / max(1, len(planner.targets)))
        self._even, self._near = max(1, round(share * EVEN)), max(2, round(share * NEAR))

    def even(self, turn: int, arms: Container[str]) -> list[Candidate]:
        """Candidates of some arms, drawn evenly; most of them are those of the turn before.

        `turn` is the proposal's number, from 0.
        """
        first, last = self._even * turn, self._even * (turn + TURNS)
        before = self._drawn_evenly
        self._drawn_evenly = {
            number: before[number] if number in before else self._numbered(number)
            for number in range(first, last)
        }
        return [each for found in self._drawn_evenly.values() for each in found if each.arm in arms]

    def near(
        self, turn: int, step: int, starts: Sequence[Mapping[str, Any]], arms: Container[str]
    ) -> list[Candidate]:
        """Candidates of some arms that are near choices with the parameters `starts`.

        `step` tells apart those that are drawn one after another in a turn.
        """
        found: list[Candidate] = []
        for number in range(self._near if starts else 0):
            rng = np.random.default_rng([self._seed, 1, turn, step, number])
            found += self._drawn(_Draw(rng, {}, starts[number % len(starts)]))
        return [each for each in found if each.arm in arms]

    def _numbered(self, number: int) -> list[Candidate]:
        arms = list(self._arms.values())
        rng = np.random.default_rng([self._seed, 0, number])
        return self._drawn(_Draw(rng, arms[number % len(arms)].params))

    def described(self, choice: Choice) -> tuple[Mapping[str, float], int]:
        """The features of a choice's plan, and its trainable parameters.

        Raises ChoiceError or ProfileError where it cannot be a plan.
        """
        values = choice.as_dict()
        rate, alpha = float(values.pop("learning_rate")), float(values.pop("alpha", 1.0))
        key = repr(values)
        if key not in self._features:
            plan = self._planner.plan(choice)
            features = plan_features(plan, rate, self._planner.profile)
            self._features[key] = (
                moved(features, -log10(rate), -log10(alpha)),
                plan.trainable_params,
            )
            if len(self._features) > _KEPT:
                self._features.popitem(last=False)
        unit, params = self._features[key]
        return moved(unit, log10(rate), log10(alpha)), params

    def _drawn(self, draw: _Draw) -> list[Candidate]:
        """The choices that the plan of a draw stands for; none where it cannot be a plan."""
        try:
            choice = self._space.suggest(draw)
            features, params = self.described(choice)
        except UsageError:
            return []
        arm = self._space.arm_of(choice, self._keys)
        first = Candidate(draw.params, arm, choice.method, features, params)
        free = {
            role: name
            for role in ("learning_rate", "alpha", "alpha_over_rank")
            if (name := f"{choice.method}.{role}") in draw.redraw and role not in self._keys
        }
        return [first, *(_variant(first, draw, free) for _ in range(VARIANTS - 1) if free)]


def _variant(first: Candidate, draw: _Draw, free: Mapping[str, str]) -> Candidate:
    """The same plan with another learning rate or alpha."""
    changed = {name: draw.redraw[name]() for name in free.values()}
    factors = {role: changed[name] / first.params[name] for role, name in free.items()}
    rate = factors.pop("learning_rate", 1.0)
    alpha = float(np.prod(list(factors.values())))
    return replace(
        first,
        params={**first.params, **changed},
        features=moved(first.features, log10(rate), log10(alpha)),
    )


class _Draw:
    """Gives values at random, or near those of a `start`, and keeps what it gave."""

    def __init__(
        self,
        rng: np.random.Generator,
        fixed: Mapping[str, Any],
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._rng, self._fixed, self._start = rng, fixed, start or {}
        self.params: dict[str, Any] = {}
        self.redraw: dict[str, Callable[[], Any]] = {}
        """Parameter that is not fixed -> gives it another value."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the `choices`; of numbers near a start, a neighbour."""

        def even() -> Any:
            return choices[int(self._rng.integers(len(choices)))]

        def near(start: Any) -> Any:
            if name == "method":
                return start
            if start not in choices or any(isinstance(each, bool | str) for each in choices):
                return even()
            ordered = sorted(choices)
            place = ordered.index(start) + int(self._rng.choice((-1, 1)))
            return ordered[min(max(place, 0), len(ordered) - 1)]

        def held(start: Any) -> Any:
            return start if start in choices else even()

        return self._given(name, even, near, held)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number from `low` to `high`, a multiple of `step` above `low`."""
        half = step / 2

        def rounded(number: float) -> int:
            return min(high, max(low, low + step * round((number - low) / step)))

        return int(self._number(name, (low - half, high + half), log, rounded))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from `low` to `high`, a multiple of `step` above `low` where there is one."""

        def rounded(number: float) -> float:
            if step is not None:
                number = low + step * round((number - low) / step)
            return min(high, max(low, number))

        ends = (low, high) if step is None else (low - step / 2, high + step / 2)
        return float(self._number(name, ends, log, rounded))

    def _number(
        self,
        name: str,
        ends: tuple[float, float],
        logarithmic: bool,
        rounded: Callable[[float], float],
    ) -> float:
        scale, unscale = (log, exp) if logarithmic else (float, float)
        low, high = map(scale, ends)

        def even() -> float:
            return rounded(unscale(self._rng.uniform(low, high)))

        def near(start: float) -> float:
            moved = scale(start) + _REACH * (high - low) * self._rng.standard_normal()
            return rounded(unscale(min(high, max(low, moved))))

        found: float = self._given(name, even, near, rounded)
        return found

    def _given(
        self,
        name: str,
        even: Callable[[], Any],
        near: Callable[[Any], Any],
        held: Callable[[Any], Any],
    ) -> Any:
        """The value of a parameter: a start's own is `held` in the space, which may have been
        another when the start was trained."""
        if name in self.params:
            return self.params[name]
        if name in self._fixed:
            self.params[name] = self._fixed[name]
            return self.params[name]
        has_start = name in self._start

        def another() -> Any:
            if has_start and self._rng.random() < _NEAR_START:
                return near(self._start[name])
            return even()

        self.redraw[name] = another
        if not has_start:
            value = even()
        elif self._rng.random() < _MOVED:
            value = near(self._start[name])
        else:
            value = held(self._start[name])
        self.params[name] = value
        return value
