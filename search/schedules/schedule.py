"""A schedule as it is read from its file, with the sweep that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from search.config.reading import load_sweep
from search.config.refusal import refusal
from search.config.sweep import SweepConfig
from search.config.yaml_file import read_mapping
from search.schedules.settings import ScheduleSettings
from spaces.errors import ConfigError, RanksweepError

_ANY_BASE = "path:."
"""Stands for the base in a sweep that names none, until a model is seen."""


@dataclass(frozen=True)
class Schedule:
    """A schedule and its sweep, checked.

    `config` is the sweep within the schedule's budget, on the base that its file names, if any.
    `overrides` are what a launch is given by `--set`, beside base and name. `digest` tells one
    state of the files from another.
    """

    path: Path
    settings: ScheduleSettings
    config: SweepConfig
    names_base: bool
    overrides: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """Name of the schedule."""
        return self.settings.name

    @property
    def sweep_file(self) -> Path:
        """The file of its sweep."""
        return self.path.parent / self.settings.sweep


def read_schedule(path: str | Path) -> Schedule:
    """Read a schedule and its sweep, and check both.

    Raises ConfigError, one line with the file and the key.
    """
    path = Path(path)
    raw = read_mapping(path, words=("on",))
    try:
        settings = ScheduleSettings.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {refusal(error, raw, ScheduleSettings)}") from None
    sweep = path.parent / settings.sweep
    try:
        written = read_mapping(sweep)
    except ConfigError as error:
        raise ConfigError(f"{path}: sweep: {error}") from None
    if written.get("name") is not None:
        raise ConfigError(
            f"{path}: sweep: {sweep} has a name ({written['name']!r}), but each claim makes its "
            "own; remove `name` from it"
        )
    names_base = "base" in written or "base" in settings.set
    given = tuple(f"{key}={json.dumps(value)}" for key, value in settings.set.items())
    place = () if names_base or not _places(settings) else (f"base={_ANY_BASE}",)

    def loaded(overrides: tuple[str, ...]) -> SweepConfig:
        return load_sweep(
            sweep, (*overrides, *place), store=settings.store, tracking=settings.tracking
        )

    try:
        config = loaded(given)
    except RanksweepError as error:
        raise ConfigError(f"{path}: sweep: {error}") from None
    if cut := _cut_to_the_budget(settings, config):
        given += cut
        try:
            config = loaded(given)
        except RanksweepError as error:
            raise ConfigError(f"{path}: budget: {error}") from None
    return Schedule(path, settings, config, names_base, given, _digest(path, sweep))


def _places(settings: ScheduleSettings) -> bool:
    return any(value for key, value in settings.on.model_dump().items() if key != "data")


def _cut_to_the_budget(settings: ScheduleSettings, config: SweepConfig) -> tuple[str, ...]:
    """What is put in place of a sweep's keys that ask for more than a schedule allows."""
    cut = []
    budget, search = settings.budget, config.search
    if budget.trials is not None and search.trials > budget.trials:
        cut.append(f"search.trials={budget.trials}")
    if budget.hours is not None and (search.time_budget or float("inf")) > budget.hours * 3600:
        cut.append(f"search.time_budget={budget.hours * 3600}")
    return tuple(cut)


def _digest(*files: Path) -> str:
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return " ".join(contents)


class Followed:
    """A schedule whose file may be edited while it runs.

    A broken edit, or one that cannot be followed or set up, keeps what was so before, and is said
    once.
    """

    def __init__(self, path: Path, say: Callable[[str], object]) -> None:
        self.schedule = read_schedule(path)
        self._say = say
        self._seen = self.schedule.digest

    def is_changed(self) -> bool:
        """Whether the files are others than at the last reading; one that is away is not."""
        try:
            return _digest(self.schedule.path, self.schedule.sweep_file) != self._seen
        except OSError:
            return False

    def read_again(self, adopt: Callable[[Schedule], object]) -> bool:
        """Read the files again where they have changed; whether the schedule is another now.

        `adopt` makes ready what the new one needs, or raises RanksweepError and changes nothing.
        """
        if not self.is_changed():
            return False
        self._seen = _digest(self.schedule.path, self.schedule.sweep_file)
        try:
            now = read_schedule(self.schedule.path)
            self._refuse_what_needs_a_start(now)
            adopt(now)
        except RanksweepError as error:
            self._say(f"{error}; the schedule goes on as it was before the edit")
            return False
        changed = _changed(self.schedule.settings.model_dump(), now.settings.model_dump())
        self.schedule, self._seen = now, now.digest
        what = ", ".join(changed) or "its sweep"
        self._say(f"{now.path} was edited ({what}) and is read again")
        return True

    def _refuse_what_needs_a_start(self, now: Schedule) -> None:
        pairs: dict[str, tuple[Any, Any]] = {
            "name": (self.schedule.name, now.name),
            "store": (self.schedule.config.store, now.config.store),
            "lease_seconds": (
                self.schedule.settings.lease_seconds,
                now.settings.lease_seconds,
            ),
        }
        for key, (before, after) in pairs.items():
            if before != after:
                raise ConfigError(
                    f"{now.path}: {key}: was changed while the schedule runs; start it again, or "
                    "set it back"
                )


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in after if before.get(key) != after[key]]
