"""The values a search may give one key of a choice: one value, a list of values, or a range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, floor, isclose
from math import log as ln
from typing import Any, Protocol

import numpy as np

from spaces.errors import ChoiceError
from spaces.refusals import unknown_key

Value = Any
"""A bool, an int, a float or a str."""
Check = Callable[[object, str], Value]
"""Takes a written value and its key, returns the value in the key's type; raises ChoiceError."""

_RANGE_KEYS = ("low", "high", "log", "step")


class Suggests(Protocol):
    """Who gives values to parameters, one after another: a trial of Optuna's is one."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the `choices`."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number from `low` to `high`, a multiple of `step` above `low`."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from `low` to `high`."""


class Evenly:
    """Gives values at random, each as likely as any other."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the `choices`."""
        return choices[int(self._rng.integers(len(choices)))]

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number from `low` to `high`, a multiple of `step` above `low`."""
        if log:
            return min(high, int(self.suggest_float(name, low, high + 1, log=True)))
        return low + step * int(self._rng.integers((high - low) // step + 1))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number from `low` to `high`."""
        if log:
            return exp(self._rng.uniform(ln(low), ln(high)))
        if step is not None:
            return low + step * int(self._rng.integers(floor((high - low) / step + 1e-9) + 1))
        return float(self._rng.uniform(low, high))


@dataclass(frozen=True)
class Fixed:
    """One value, which is not searched."""

    value: Value


@dataclass(frozen=True)
class Options:
    """Two or more values, searched as categories."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`, ends included.

    Only whole numbers where `whole`, only those `step` apart where there is a step.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False


Domain = Fixed | Options | Range


def parse_domain(
    written: object, where: str, number: type[int] | type[float] | None, check: Check
) -> Domain:
    """The domain that a scalar, a list or a {low, high, log, step} stands for.

    `number` is the type of a key that can have a range. Raises ChoiceError with the key under
    `where`.
    """
    if isinstance(written, Mapping):
        return _parse_range(written, where, number, check)
    if not isinstance(written, list | tuple):
        return Fixed(check(written, where))
    values = tuple(check(value, where) for value in written)
    if not values:
        raise ChoiceError(f"{where}: an empty list; write at least one value")
    if len(set(values)) < len(values):
        raise ChoiceError(f"{where}: lists a value twice; list each once")
    return Options(values) if len(values) > 1 else Fixed(values[0])


def suggest(domain: Domain, trial: Suggests, name: str) -> Value:
    """A value of the domain, asked of the trial as `name` where there is more than one."""
    if isinstance(domain, Fixed):
        return domain.value
    if isinstance(domain, Options):
        return trial.suggest_categorical(name, domain.values)
    if domain.whole:
        step = int(domain.step or 1)
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def closest(domain: Domain, value: Value) -> Value:
    """The value of the domain nearest to `value`; the first one where nearness means nothing."""
    if isinstance(domain, Fixed):
        return domain.value
    if isinstance(domain, Options):
        if value in domain.values:
            return value
        if not _is_number(value):
            return domain.values[0]
        return min(domain.values, key=lambda option: abs(option - value))
    clipped = min(max(value, domain.low), domain.high)
    step = domain.step or (1 if domain.whole else None)
    if step is not None:
        clipped = domain.low + step * floor((clipped - domain.low) / step + 0.5)
        clipped = min(clipped, domain.high)
    return int(clipped) if domain.whole else clipped


def holds(domain: Domain, value: Value) -> bool:
    """Whether `value` is in the domain."""
    near = closest(domain, value)
    return bool(isclose(near, value, rel_tol=1e-9) if _is_number(value) else near == value)


def middle(domain: Domain) -> Value:
    """The value nearest to the geometric mean of the ends of a domain of positive numbers."""
    low, high = ends(domain)
    return closest(domain, exp((ln(low) + ln(high)) / 2))


def ends(domain: Domain) -> tuple[Value, Value]:
    """The least and the greatest value of a domain of numbers."""
    if isinstance(domain, Range):
        return domain.low, domain.high
    return min(listed(domain)), max(listed(domain))


def listed(domain: Domain) -> tuple[Value, ...]:
    """Every value of a domain that is not a range of fractions."""
    if isinstance(domain, Fixed):
        return (domain.value,)
    if isinstance(domain, Options):
        return domain.values
    return tuple(range(int(domain.low), int(domain.high) + 1, int(domain.step or 1)))


def all_of(domain: Domain) -> Iterator[Value] | None:
    """Every value of a domain, one after another; None where there is no end of them."""
    if not isinstance(domain, Range):
        return iter(listed(domain))
    low, high, step = domain.low, domain.high, domain.step
    if domain.whole:
        return iter(range(int(low), int(high) + 1, int(step or 1)))
    if step is None:
        return None
    return (low + step * i for i in range(floor((high - low) / step + 1e-9) + 1))


def capped(domain: Domain, limit: float) -> Domain:
    """The domain without what is above `limit`; `limit` itself where nothing is left."""
    if isinstance(domain, Range):
        if domain.high <= limit:
            return domain
        if domain.low >= limit:
            return Fixed(int(limit) if domain.whole else limit)
        return _range(domain.low, limit, domain.log, domain.step, domain.whole)
    return _listing(tuple(value for value in listed(domain) if value <= limit), limit)


def restricted(domain: Domain, allowed: tuple[Value, ...], otherwise: Value) -> Domain:
    """The values of a listed domain that are `allowed`; `otherwise` where none is."""
    return _listing(tuple(value for value in listed(domain) if value in allowed), otherwise)


def _listing(values: tuple[Value, ...], otherwise: Value) -> Domain:
    if len(values) > 1:
        return Options(values)
    return Fixed(values[0] if values else otherwise)


def _parse_range(
    written: Mapping[Any, Any], where: str, number: type[int] | type[float] | None, check: Check
) -> Domain:
    if number is None:
        raise ChoiceError(f"{where}: a range is for numbers; write a list of values")
    for key in written:
        if key not in _RANGE_KEYS:
            raise ChoiceError(f"{where}.{key}: {unknown_key(str(key), _RANGE_KEYS)}")
    for key in ("low", "high"):
        if key not in written:
            raise ChoiceError(f"{where}.{key}: missing; a range is {{low, high}}, with log or step")
    low = check(written["low"], f"{where}.low")
    high = check(written["high"], f"{where}.high")
    logarithmic, step = written.get("log", False), written.get("step")
    whole = number is int
    if low > high:
        raise ChoiceError(f"{where}.low: {low} is above high {high}; swap them")
    if not isinstance(logarithmic, bool):
        raise ChoiceError(f"{where}.log: {logarithmic!r} is refused; write true or false")
    if logarithmic and low <= 0:
        raise ChoiceError(f"{where}.low: {low} has no logarithm; use a low above 0 or log: false")
    if step is not None:
        if not _is_number(step) or not 0 < step < float("inf") or (whole and step != int(step)):
            kind = "positive whole number" if whole else "positive number"
            raise ChoiceError(f"{where}.step: {str(step)[:60]!r} is refused; write a {kind}")
        if logarithmic:
            raise ChoiceError(f"{where}.step: does not go with log: true; leave one of them out")
    return _range(low, high, logarithmic, step, whole)


def _range(low: float, high: float, logarithmic: bool, step: float | None, whole: bool) -> Domain:
    if step is not None:
        # The slack keeps a high that is a whole number of steps away in spite of float64.
        high = low + step * floor((high - low) / step + 1e-9)
    if low == high:
        return Fixed(low)
    return Range(low, high, logarithmic, step, whole)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
