"""What narrows a query down: of trials, and of the sweeps that they are part of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from search.queries.champions import base_name
from search.tracking.conditions import Bound, Condition, Text
from search.tracking.facts import PREFIX, RunFacts
from spaces.errors import ConfigError
from spaces.methods.registry import method_named

_AGE = re.compile(r"(\d+(?:\.\d+)?)(min|h|d|w)")
_UNITS = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class Filters:
    """What is asked of a trial; None is no filter.

    `base` is the start of a base's fingerprint, or a part of its URI (of a sweep, also of its
    name). `max_memory` bounds the most bytes that a worker held, `max_step_time` the median seconds
    of a step: trials that do not say it are left out. `since_ms` and `until_ms` bound when the
    trial, or of a query over sweeps the sweep, was started, in milliseconds of Unix time. `tags`
    are a run's tags in MLflow, by their whole names.

    Raises ConfigError for bounds below 1, a time after its end, ChoiceError for an unknown method.
    """

    base: str | None = None
    method: str | None = None
    arm: str | None = None
    min_params: int | None = None
    max_params: int | None = None
    max_memory: int | None = None
    max_step_time: float | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    sweep: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("min", self.min_params), ("max", self.max_params)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"--{name}-params: {value} is not a number of parameters; use 1 or more"
                )
        if self.max_step_time is not None and not self.max_step_time > 0:
            raise ConfigError(f"--max-step-time: {self.max_step_time} is no time; use seconds")
        if None not in (self.since_ms, self.until_ms) and self.since_ms > self.until_ms:  # type: ignore[operator]
            raise ConfigError("--since: it is after --until, so nothing is between them")
        if self.method is not None:
            method_named(self.method, "--method")

    @property
    def looks_into_trials(self) -> bool:
        """Whether it takes more than a sweep and the methods of its trials to tell who meets it."""
        bounds = (self.arm, self.min_params, self.max_params, self.max_memory, self.max_step_time)
        return any(each is not None for each in bounds)

    def who(self) -> list[Condition]:
        """What MLflow is asked of trials: whose they are, but for their base, and when."""
        said = (("method", self.method), ("arm", self.arm), ("sweep", self.sweep))
        asked: list[Condition] = [Text(PREFIX + k, v) for k, v in said if v is not None]
        asked += [Text(key, value) for key, value in self.tags.items()]
        return [*asked, *_bounds(Bound("start_time", self.since_ms, self.until_ms))]

    def what(self) -> list[Condition]:
        """What MLflow is asked of trials: what they take."""
        return _bounds(
            Bound("trainable_params", self.min_params, self.max_params),
            Bound("memory_bytes", most=self.max_memory),
            Bound("step_time", most=self.max_step_time),
        )

    def of_bases(self) -> list[list[Condition]]:
        """What MLflow is asked of a run's base: one of these, which it cannot be asked at once."""
        if self.base is None:
            return [[]]
        by_place: list[list[Condition]] = [[Text(PREFIX + "base_uri", self.base, "has")]]
        if _HEX.fullmatch(self.base):
            by_place.append([Text(PREFIX + "base", self.base, "starts")])
        return by_place

    def of_sweeps(self) -> list[Condition]:
        """What MLflow is asked of sweeps, but for their base."""
        asked: list[Condition] = [Text(key, value) for key, value in self.tags.items()]
        if self.sweep is not None:
            asked.append(Text(PREFIX + "sweep", self.sweep))
        return [*asked, *_bounds(Bound("start_time", self.since_ms, self.until_ms))]

    def is_of_base(self, base: str, uri: str) -> bool:
        """Whether a base of this fingerprint and URI is one that is wanted."""
        return self.base is None or base.startswith(self.base) or self.base in uri

    def is_on(self, sweep: RunFacts) -> bool:
        """Whether a sweep is on a base that is wanted, which may be called by its name."""
        name = base_name(sweep.base_uri, sweep.base_name)
        return self.is_of_base(sweep.base, sweep.base_uri) or str(self.base) in name


def _bounds(*every: Bound) -> list[Condition]:
    return [each for each in every if (each.least, each.most) != (None, None)]


def moment_ms(key: str, text: str, now: datetime) -> int:
    """A date, a time (ISO 8601; without a zone this machine's) or an age such as 90min, 6h, 7d or
    2w, in milliseconds of Unix time. Raises ConfigError, which names the `key`."""
    if age := _AGE.fullmatch(text.strip()):
        try:
            then = now - timedelta(**{_UNITS[age[2]]: float(age[1])})
        except OverflowError:
            raise ConfigError(f"{key}: {text[:40]!r} is before all time; write a date") from None
        return max(0, int(then.timestamp() * 1000))
    try:
        then = datetime.fromisoformat(text.strip())
        return int((then if then.tzinfo else then.astimezone()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"{key}: {text[:40]!r} is no time; write a date such as 2026-11-30, or an age as 7d"
        ) from None


def day_end_ms(key: str, text: str, now: datetime) -> int:
    """As `moment_ms`, of the end of what is written: a date alone is the whole day."""
    at = moment_ms(key, text, now)
    if re.fullmatch(r"\d{4}-\d\d-\d\d|\d{8}", text.strip()):
        day = datetime.fromtimestamp(at / 1000, UTC) + timedelta(days=1)
        return int(day.timestamp() * 1000) - 1
    return at


def tags_of(given: Sequence[str]) -> dict[str, str]:
    """`--tag KEY=VALUE`, each. Raises ConfigError where one is written otherwise."""
    found: dict[str, str] = {}
    for each in given:
        key, sign, value = each.partition("=")
        if not sign or not key:
            raise ConfigError(f"--tag: {each[:80]!r} is no tag; write KEY=VALUE")
        if found.setdefault(key, value) != value:
            raise ConfigError(f"--tag: {key[:80]!r} cannot be two values at once")
    return found
