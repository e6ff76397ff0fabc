"""The schedule file: what is swept, when it is looked for new models, and within what bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from search.config.sweep import StoreUri
from search.paths import check_sweep_name
from search.redaction import redacted
from search.schedules.cron import cron_triggers, zone
from search.schedules.notify import ReceiverSettings
from search.schedules.quiet import cover_the_day, minutes_of
from search.schedules.triggers.settings import Existing, TriggerSettings
from search.store.keys import USAGE
from spaces.errors import ConfigError
from trainables.settings import Names, Settings

OF_A_SUBMISSION = ("submit", "shared", "remote_folder")
"""Keys that say how sweeps are sent to a cluster."""
Positive = Annotated[FiniteFloat, Field(gt=0.0)]


def _a_name(name: str) -> str:
    try:
        check_sweep_name(name)
    except ConfigError:
        raise ValueError(
            f"{name[:120]!r} cannot name a schedule; use up to 100 letters, digits, '.', '_' and "
            "'-', the first a letter or a digit"
        ) from None
    if name == USAGE:
        raise ValueError(f"{name!r} is what the store keeps of all schedules; use another name")
    return name


def _without_password(uri: str) -> str:
    if redacted(uri) != uri:
        raise ValueError(
            f"{redacted(uri)} holds credentials, which would stand in every list of processes; "
            "give it by the environment (RANKSWEEP_STORE, MLFLOW_TRACKING_URI)"
        )
    return uri


def _texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Every text in a value, however deep, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(f"{key}.{name}" if key else str(name), inner)
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _texts(f"{key}[{index}]", inner)


def _a_zone(name: str) -> str:
    zone(name)
    return name


class WhenSettings(Settings):
    """When a schedule looks for new models."""

    cron: Names = ()
    """Times as in a crontab, such as `["0 3 * * *"]`: minute, hour, day of the month, month, day of
    the week (0 and 7 are Sunday). With none, it looks every so many seconds."""
    every: Annotated[FiniteFloat, Field(ge=1.0, le=30 * 86_400.0)] | None = None
    """Seconds from one look to the next, whatever the clock on the wall does; default: 300, or none
    where cron times are given."""
    timezone: Annotated[str, AfterValidator(_a_zone)] | None = None
    """Zone of the cron times and of the quiet hours, such as `Europe/Berlin`; `null` is that of the
    machine."""

    @field_validator("cron")
    @classmethod
    def _fires(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        for line in lines:
            cron_triggers(line, zone("UTC"))
        return lines

    @property
    def pause(self) -> float | None:
        """Seconds between looks; None where cron times alone say when."""
        return self.every if self.every is not None or self.cron else 300.0


class BudgetSettings(Settings):
    """What scheduled sweeps may use."""

    trials: PositiveInt | None = None
    """Trials of a sweep, where its `search.trials` says more."""
    hours: Positive | None = None
    """Hours of a sweep's search, where its `search.time_budget` says more or nothing."""
    gpu_hours_a_day: Positive | None = None
    """GPU-hours of a day (UTC) after which this schedule starts no sweep until the next; those of
    all schedules of the store count. A sweep that runs goes on."""


class ScheduleSettings(Settings):
    """A schedule: a sweep, what is looked at, and when. Only name and sweep are required."""

    name: Annotated[str, AfterValidator(_a_name)]
    """Name of the schedule, under which the store remembers what it has seen: letters, digits, `.`,
    `_`, `-`. Several schedulers may run one schedule."""
    sweep: Annotated[str, Field(min_length=1)]
    """The sweep's file, relative to the schedule's. It has no `name`, for each claim makes its own,
    and needs no `base` where `on` names places that new models come to."""
    set: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    """What is put in place of the sweep's keys, such as `{search.trials: 12}`, as with `--set`."""
    when: WhenSettings = WhenSettings()
    on: TriggerSettings = TriggerSettings()
    existing: Existing = "newest"
    """Which of the models that are there at the schedule's first look are swept too: the newest of
    each place, all, or none. Those that come later always are."""
    missed: Literal["catch_up", "skip"] = "catch_up"
    """Whether a cron time that came while no scheduler ran is made up for at the start."""
    budget: BudgetSettings = BudgetSettings()
    quiet: Names = ()
    """Hours in which no sweep is started, such as `["22:00-06:00"]`; one that runs goes on."""
    at_once: PositiveInt = 1
    """Sweeps that a scheduler runs at the same time."""
    tries: PositiveInt = 3
    """How often a sweep is tried in all where it fails. What is wrong before it has begun, such as
    a model that cannot be loaded, is not tried again."""
    backoff: Annotated[FiniteFloat, Field(ge=0.0)] = 600.0
    """Seconds before the second try; before each further one twice as many."""
    submit: Annotated[str, Field(min_length=1)] | None = None
    """Address of a Ray cluster that the sweeps are sent to as jobs (`launch --submit`); `null` runs
    them on the machine of the scheduler."""
    shared: bool = False
    """With `submit`: the sweep's files and the models that are found are at the same paths on every
    node of the cluster and stay there (`launch --shared`); else they travel, a base of up to 100
    MiB."""
    remote_folder: Annotated[str, Field(min_length=1)] | None = None
    """With `submit`: the head node's folder for what a launch keeps; `null` is `~/ranksweep`."""
    promote: bool = False
    """Whether the best of a sweep becomes the champion of its task where it beats the present one
    beyond the noise (`ranksweep champion`)."""
    notify: tuple[ReceiverSettings, ...] = ()
    """Webhooks that are told of new models, sweeps that are done and failures."""
    lease_seconds: Annotated[FiniteFloat, Field(ge=2.0, le=86_400.0)] = 300.0
    """Seconds without a sign of life after which another scheduler goes on with a sweep. One that
    cannot reach the store for half of it stops its sweep."""
    store: Annotated[StoreUri, AfterValidator(_without_password)] | None = None
    """The store of claims and profiles; `null` takes the sweep's."""
    tracking: Annotated[str, Field(min_length=1), AfterValidator(_without_password)] | None = None
    """MLflow's URI; `null` takes the sweep's."""

    @model_validator(mode="before")
    @classmethod
    def _a_null_is_not_given(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {k: v for k, v in raw.items() if v is not None or k not in cls.model_fields}

    @model_validator(mode="after")
    def _submits(self) -> ScheduleSettings:
        for key in OF_A_SUBMISSION:
            if self.submit is None and getattr(self, key):
                raise ValueError(f"{key}: goes with `submit`; name a cluster there, or remove it")
        return self

    @field_validator("quiet")
    @classmethod
    def _leaves_time(cls, spans: tuple[str, ...]) -> tuple[str, ...]:
        for span in spans:
            minutes_of(span)
        if spans and cover_the_day(spans):
            raise ValueError("covers the whole day, so that nothing is ever started; leave a gap")
        return spans

    @field_validator("set")
    @classmethod
    def _leaves_the_name(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        if "name" in overrides:
            raise ValueError("names the sweep, but each claim makes its own name; remove it")
        for key, text in _texts("", overrides):
            if redacted(text) != text:
                raise ValueError(
                    f"{key} holds credentials, which would stand in every list of processes; "
                    "write it in the sweep's file"
                )
        return overrides
