"""One schedule at work: it looks, claims what is due, and runs it within the schedule's bounds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from search.paths import SweepPaths
from search.schedules.bounds import held_up
from search.schedules.events import Nobody, Teller
from search.schedules.identity import Fingerprints
from search.schedules.looks import Looks, wall_clock
from search.schedules.memory import Memory
from search.schedules.notify import Kind
from search.schedules.process import Command, launch_command
from search.schedules.run import (
    Outcome,
    Promote,
    SweepRun,
    backoff_seconds,
    is_before,
    promotion_of,
)
from search.schedules.schedule import Followed, Schedule
from search.schedules.sight import Due, Eyes, Sight
from search.schedules.trigger import Trigger
from search.schedules.usage import Meter, gpus_of
from search.schedules.wiring import build, teller_of
from search.store.claims import Claim, ClaimRecord, Claims
from search.store.keys import schedule_prefix
from search.store.objects import ObjectStorage
from search.trained.promotion import promote_best_of
from spaces.errors import StoreError, one_line

Say = Callable[[str], object]
_log = logging.getLogger(__name__)


def folder_of_schedules() -> Path:
    """Where the output of scheduled sweeps goes, in the working directory."""
    return SweepPaths().absolute().root / "schedules"


def say_nothing(_text: str) -> None:
    """Where nobody listens."""


@dataclass(frozen=True)
class Seams:
    """What a scheduler reaches the world by, for tests to put others in their place."""

    build: Callable[[Schedule], list[Trigger]] = build
    teller_of: Callable[[Schedule], Teller] = teller_of
    command: Command = launch_command
    promote: Promote = promote_best_of
    fingerprints: Callable[[], Fingerprints] = Fingerprints
    now: Callable[[], datetime] = wall_clock
    monotonic: Callable[[], float] = time.monotonic


@dataclass
class Scheduler:
    """Runs one schedule. `wake` is called when one of its sweeps has ended.

    With `again` it tries once more what has failed for good.

    Raises ConfigError where the file is wrong, StoreError where the store does not keep conditions
    or is away.
    """

    path: Path
    say: Say = say_nothing
    wake: Callable[[], object] = lambda: None
    seams: Seams = Seams()
    again: bool = False
    errors: tuple[str, ...] = field(default=(), init=False)
    """What could not be looked at by the last look."""
    runs: list[SweepRun] = field(default_factory=list, init=False)
    outcomes: list[Outcome] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._followed = Followed(self.path, self._say)
        store = ObjectStorage(self.schedule.config.store)
        if not store.creates_once():
            raise StoreError(
                f"store: {store.name} creates an object again that is there, so that two "
                "schedulers would run one sweep; use a store that keeps conditions "
                "(`ranksweep doctor --store URI` tells)"
            )
        self._objects = store
        self._claims = Claims(
            store, self.schedule.settings.lease_seconds, clock=self.seams.monotonic
        )
        self._memory = Memory(store.under(schedule_prefix(self.schedule.name)))
        self._eyes = Eyes(self._memory, self._claims, self.seams.fingerprints())
        self._looks = self._looks_from(
            self.schedule,
            self._memory.last_look() if self.schedule.settings.missed == "catch_up" else None,
        )
        self._teller: Teller = Nobody()
        self._set_up(self.schedule)
        self._due: list[Due] = []
        self._awaited: set[str] = set()
        self._failed_since: dict[tuple[str, int], float] = {}
        self._told: set[str] = set()
        self._held_up: str | None = None
        self._leaving = False

    @property
    def schedule(self) -> Schedule:
        """The schedule as it is now."""
        return self._followed.schedule

    @property
    def store(self) -> str:
        """Its store, as it may be shown."""
        return self._objects.name

    @property
    def due(self) -> tuple[Due, ...]:
        """What is to be swept, by the last look, and is not settled nor run here."""
        return tuple(self._due)

    # What a service asks of it -----------------------------------------------------------------

    def tick(self) -> None:
        """Look where a look is due, then start what may start.

        Nothing is raised: what fails is said, and tried again.
        """
        self._reap()
        try:
            if self._looks.are_due():
                self.look()
            self.start()
        except Exception as error:
            _log.debug("a look has failed", exc_info=True)
            self._say_once(f"could not look: {one_line(error)}")
            self._looks.failed()

    def look(self) -> bool:
        """Look now; False where the store is away, and then a look is due again soon."""
        try:
            self._followed.read_again(self._adopt)
            sight = self._eyes.look(self.schedule, self._triggers, again=self.again)
            self._memory.note_look(self.seams.now())
        except StoreError as error:
            self._say_once(f"could not look: {error}")
            self._looks.failed()
            return False
        self._looks.made()
        self._hear(sight)
        return True

    def start(self) -> None:
        """Start what is due, as far as quiet hours, budget and `at_once` allow."""
        if self._leaving or not self._due or len(self.runs) >= self.schedule.settings.at_once:
            return
        if self._followed.is_changed() and not self.look():
            return
        try:
            before, why = self._held_up, held_up(self.schedule, self._objects, self.seams.now())
            self._held_up = why
            if why is not None:
                if why != before:
                    self._say(f"nothing is started: {why}")
                return
            for due in list(self._due):
                if len(self.runs) >= self.schedule.settings.at_once:
                    return
                self._try(due)
        except StoreError as error:
            self._say_once(f"could not claim: {error}")

    def stop(self, *, hurry: bool = False) -> None:
        """Start nothing more and interrupt what runs, with `hurry` as by a second Ctrl-C."""
        self._leaving = True
        for run in list(self.runs):
            run.stop()
            if hurry:
                run.hurry()

    def join(self, seconds: float) -> bool:
        """Wait for what runs to end; whether all has."""
        give_up = time.monotonic() + seconds
        for run in list(self.runs):
            run.join(max(0.0, give_up - time.monotonic()))
        self._reap()
        return not self.runs

    def close(self) -> None:
        """Wait a moment for what is still to be told to the receivers."""
        self._teller.close()

    def may_still_claim(self) -> bool:
        """Whether something due is held by one of whom is not known yet that it lives."""
        return any(
            each.key in self._awaited and not self._claims.is_alive(each.key) for each in self._due
        )

    # Inside ------------------------------------------------------------------------------------

    def _set_up(self, schedule: Schedule) -> None:
        """Raises RanksweepError where it cannot be, and then all is as before."""
        triggers, teller = self.seams.build(schedule), self.seams.teller_of(schedule)
        self._triggers = triggers
        before, self._teller = self._teller, teller
        before.close()

    def _adopt(self, edited: Schedule) -> None:
        looks = self._looks_from(edited, None)
        self._set_up(edited)
        self._looks = looks

    def _looks_from(self, schedule: Schedule, last: datetime | None) -> Looks:
        when = schedule.settings.when
        return Looks(when, last, now=self.seams.now, monotonic=self.seams.monotonic)

    def _hear(self, sight: Sight) -> None:
        running = {run.due.key for run in self.runs}
        self._due = [each for each in sight.due if each.key not in running]
        self.errors = sight.errors
        told = [*sight.waiting, *sight.errors]
        self._told &= set(told)  # what has passed is said again when it comes again
        for text in told:
            self._say_once(text)

    def _try(self, due: Due) -> None:
        record = self._claims.record(due.key)
        if record is not None and self._is_settled(record):
            self._due.remove(due)
            return
        if record is not None and not self._is_time(due, record):
            return
        claim = self._claims.take(due.key)
        if claim is None:
            self._awaited.add(due.key)
            return
        self._awaited.discard(due.key)
        try:
            if claim.record is not None and (
                self._is_settled(claim.record) or not self._is_time(due, claim.record)
            ):
                claim.release()
                return
            self._eyes.remember(due)
            run = self._run_of(due, claim)
        except Exception:
            with suppress(StoreError):
                claim.release()
            raise
        self._due.remove(due)
        self.runs.append(run)
        run.start()

    def _run_of(self, due: Due, claim: Claim) -> SweepRun:
        schedule = self.schedule
        return SweepRun(
            schedule,
            due,
            claim,
            folder=folder_of_schedules(),
            lease_seconds=self._claims.lease_seconds,
            command=self.seams.command,
            meter=Meter(
                self._objects,
                f"{due.sweep}-{claim.number}",
                gpus_of(schedule.config.cluster),
                now=self.seams.now,
            ),
            tell=self._tell,
            say=self._say,
            promoted=lambda: promotion_of(
                self.seams.promote, schedule.config.tracking.uri, due.sweep, due.sighting.base
            ),
            on_end=self.wake,
            now=self.seams.now,
        )

    def _is_settled(self, record: ClaimRecord) -> bool:
        return record.is_settled and not (self.again and record.has_failed_for_good)

    def _is_time(self, due: Due, record: ClaimRecord) -> bool:
        """Whether the next try is due: by the clock on the wall, or by this scheduler's own, which
        has seen the failure for so long."""
        if not is_before(record, self.seams.now()):
            return True
        now = self.seams.monotonic()
        since = self._failed_since.setdefault((due.key, record.failures), now)
        return now - since >= backoff_seconds(self.schedule, record.failures)

    def _reap(self) -> None:
        for run in [each for each in self.runs if each.is_over]:
            self.runs.remove(run)
            outcome = run.outcome
            if outcome is None:
                continue
            self.outcomes.append(outcome)
            if outcome.state in ("failed", "interrupted", "lost") and outcome.tries_left > 0:
                self._due.append(run.due)

    def _tell(self, kind: Kind, text: str, facts: Mapping[str, Any]) -> None:
        # By whoever is to be told now: a sweep may outlive an edit of the schedule.
        self._teller.tell(kind, text, facts)

    def _say(self, text: str) -> None:
        self.say(f"{self._followed.schedule.name}: {text}")

    def _say_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._say(text)
