"""One claimed sweep, run to its end: its process, the beats of its claim, and what is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from search.redaction import redacted_text
from search.schedules.events import Tell
from search.schedules.looks import wall_clock
from search.schedules.process import (
    Command,
    Ended,
    SweepProcess,
    rests_on_others,
    wait_for_the_one_before,
    was_begun,
)
from search.schedules.schedule import Schedule
from search.schedules.sight import Due
from search.schedules.usage import Meter
from search.store.claims import Claim, ClaimRecord, State
from spaces.errors import StoreError, one_line

BEATS_PER_LEASE = 10
SLICE_S = 0.25
T = TypeVar("T")


class Promote(Protocol):
    """Has the best of a sweep promoted, as `promote_best_of` does."""

    def __call__(self, tracking_uri: str, sweep: str, /, *, base_uri: str) -> Any:
        """Takes the tracking URI, the name of a sweep and where its base is now; gives a
        `Promotion`."""


@dataclass(frozen=True)
class Outcome:
    """What has become of a sweep that this scheduler has run."""

    schedule: str
    sweep: str
    model: str
    state: State | str
    """As the claim says it, or `lost` where another has taken it over."""
    error: str | None
    tries_left: int
    best: Any


class SweepRun:
    """Runs one claimed sweep in a thread of its own; `outcome` is there when it has ended.

    `promoted` is asked once the sweep is done and before its claim says so; whoever takes over asks
    it again. `say` hears lines for the scheduler's own log.
    """

    def __init__(
        self,
        schedule: Schedule,
        due: Due,
        claim: Claim,
        *,
        folder: Path,
        lease_seconds: float,
        command: Command,
        meter: Meter,
        tell: Tell,
        say: Callable[[str], object],
        promoted: Callable[[], dict[str, Any]],
        on_end: Callable[[], object],
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self._thread = threading.Thread(target=self._go, name=f"sweep {due.sweep}", daemon=True)
        self.schedule, self.due = schedule, due
        self.outcome: Outcome | None = None
        self.claim, self._lease_seconds = claim, lease_seconds
        self._log = folder / schedule.name / f"{due.sweep}.log"
        self._command, self._meter = command, meter
        self._tell, self._say, self._promoted, self._on_end = tell, say, promoted, on_end
        self._record = claim.record or ClaimRecord(
            state="claimed",
            schedule=schedule.name,
            sweep=due.sweep,
            model=due.sighting.subject,
            base=redacted_text(due.sighting.base),
            tries_left=schedule.settings.tries,
        )
        self._ran_before = self._record.state in ("running", "interrupted")
        if self._record.has_failed_for_good:  # and is asked for again
            self._record = replace(self._record, tries_left=schedule.settings.tries, failures=0)
        self._now = now
        self._is_new = claim.record is None
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._beaten_at = -float("inf")
        self._counted_at = time.monotonic()
        self._process: SweepProcess | None = None

    @property
    def guard(self) -> int | None:
        """Process id of the guard between this scheduler and the sweep, once it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end, for so many seconds at most."""
        self._thread.join(seconds)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Interrupt the sweep, as Ctrl-C."""
        if not self._stop.is_set():
            self._stop.set()
            self._interrupt()

    def hurry(self) -> None:
        """As a second Ctrl-C."""
        if not self._hurry.is_set():
            self._hurry.set()
            self._interrupt()

    def _interrupt(self) -> None:
        # Not by its own thread, which may just wait for a store that is away.
        if (process := self._process) is not None:
            process.interrupt()

    def _go(self) -> None:
        try:
            self._run()
        except StoreError as error:
            self._say(f"{self.due.sweep}: {error}; whoever can reach the store goes on with it")
            self._give_up(error)
        except Exception as error:  # the scheduler goes on with its other sweeps
            self._say(f"{self.due.sweep}: {one_line(error)}")
            self._interrupt()
            self._give_up(error)
        finally:
            self._on_end()

    def _give_up(self, error: Exception) -> None:
        if self.outcome is None:  # what the claim says stays so
            self._end("lost", one_line(error))

    def _run(self) -> None:
        if not self._note("claimed"):
            return
        if self._is_new:
            self._tell_seen()
        if self.due.unfit is not None:
            self._failed(self.due.unfit, for_good=not self.due.may_pass)
            return
        if not wait_for_the_one_before(self.due.sweep, self._goes_on):
            self._note_end("interrupted", let_go=False)
            return
        may_pass = (
            self._ran_before
            or self._record.failures > 0
            or was_begun(self.due.sweep)
            or rests_on_others(self.schedule, self.due)
        )
        try:
            command = self._command(self.schedule, self.due)
            self._process = SweepProcess(command, self._log, self._lease_seconds)
        except OSError as error:
            self._failed(f"{self._log}: {error.strerror or error}; make room, or correct that")
            return
        self._say(f"{self.due.sweep}: {self.due.sighting.subject} is being swept ({self._log})")
        try:
            self._note("running")
        except StoreError as error:  # it is away: the beats tell whether that lasts
            self._say(f"{self.due.sweep}: {error}")
        ended = self._waited(self._process)
        has_ended = not ended.leaves_a_launch or self._has_wound_down()
        if self.claim.is_lost:
            self._lost()
        elif ended.how == "done":
            self._done(ended)
        elif ended.how == "interrupted":
            self._interrupted(ended, has_ended)
        else:
            self._failed(ended.error or "", for_good=ended.how == "refused" and not may_pass)

    # While it runs -----------------------------------------------------------------------------

    def _waited(self, process: SweepProcess) -> Ended:
        told = False
        if self._stop.is_set():  # before there was a process
            process.interrupt()
        while (ended := process.wait(SLICE_S)) is None:
            self._beat(process)
            if self.claim.is_lost and not told:
                told = True
                process.interrupt()
        self._count()
        return ended

    def _goes_on(self) -> bool:
        """Wait a moment for what keeps the sweep from being begun; whether to wait on."""
        return self._holds_on(self._stop.wait)

    def _has_wound_down(self) -> bool:
        """Keep the claim until the launch that a killed guard has left has ended; whether it has.

        It ends by itself, interrupted. Not waited for where the claim is lost, or in a hurry.
        """
        go_on = partial(self._holds_on, self._hurry.wait)
        has_ended = wait_for_the_one_before(self.due.sweep, go_on)
        self._count()
        return has_ended

    def _holds_on(self, wait: Callable[[float], object]) -> bool:
        """Wait a moment with the claim kept alive; whether to wait on."""
        self._beat(None)
        return not (wait(SLICE_S) or self.claim.is_lost)

    def _beat(self, process: SweepProcess | None) -> None:
        now = time.monotonic()
        if now - self._beaten_at < self._lease_seconds / BEATS_PER_LEASE:
            return
        try:
            held = self.claim.beat()
        except StoreError as error:
            # Said by the guard too, once it stops the sweep; a short absence does no harm.
            self._say(f"{self.due.sweep}: its claim could not be renewed: {error}")
            self._beaten_at = now - self._lease_seconds / BEATS_PER_LEASE / 2
            return
        self._beaten_at = now
        if not held or process is None:
            return
        self._count()
        # One that took long may have been written long ago: others count from then.
        if time.monotonic() - now < self._lease_seconds / BEATS_PER_LEASE:
            process.go_on()

    def _count(self) -> None:
        now = time.monotonic()
        try:
            self._meter.add(now - self._counted_at)
        except StoreError:
            return  # counted with the next
        self._counted_at = now

    # At its end --------------------------------------------------------------------------------

    def _done(self, ended: Ended) -> None:
        best = ended.best
        if best is not None:
            best = {**best, "metric": self.schedule.config.search.metric}
        promoted: dict[str, Any] | None = None
        if self.schedule.settings.promote:
            promoted = self._promotion()
            if self.claim.is_lost:
                self._lost()
                return
            if promoted is None:
                self._note_end("interrupted", let_go=False)
                return
        if not self._note_end("done", best=best, error=None, not_before=None):
            return
        told = "" if best is None else f", best {best['metric']} {best['value']:.4g}"
        why = "" if promoted is None else f"; {promoted['reason']}"
        if promoted is not None and promoted.get("promoted"):
            why = f"; it is the champion now: {promoted['reason']}"
        text = f"{self.due.sighting.subject} is swept{told}{why}"
        self._say(f"{self.due.sweep}: {text}")
        self._tell("done", text, {**self._facts, "best": best, "promotion": promoted})
        if promoted is not None and promoted.get("promoted"):
            self._tell("promoted", promoted["reason"], {**self._facts, "promotion": promoted})

    def _promotion(self) -> dict[str, Any] | None:
        """What came of the promotion, with the claim kept alive meanwhile.

        None where it is not waited for: the claim is lost, or somebody is in a hurry.
        """
        found: list[dict[str, Any]] = []
        over = threading.Event()

        def promote() -> None:
            found.append(self._promoted())
            over.set()

        threading.Thread(target=promote, name=f"promotion {self.due.sweep}", daemon=True).start()
        while not over.wait(SLICE_S):
            self._beat(None)
            if self.claim.is_lost or self._hurry.is_set():
                return None
        return found[0]

    def _interrupted(self, ended: Ended, has_ended: bool) -> None:
        asked = self._stop.is_set()
        # One that was stopped from elsewhere does not start again the next moment.
        pause = None if asked else self._in(self.schedule.settings.backoff)
        if self._note_end("interrupted", let_go=has_ended, not_before=pause):
            self._say(f"{self.due.sweep}: interrupted (exit code {ended.code}); it can go on")

    def _failed(self, error: str, *, for_good: bool = False) -> None:
        failures = self._record.failures + 1
        left = 0 if for_good else max(0, self._record.tries_left - 1)
        pause = backoff_seconds(self.schedule, failures)
        if not self._note_end(
            "failed",
            error=error,
            failures=failures,
            tries_left=left,
            not_before=self._in(pause) if left else None,
        ):
            return
        if left:
            again = f"; it is tried again in {pause:g} s, {left} tries left"
            self._say(f"{self.due.sweep}: failed: {error}{again}")
            return
        text = f"{self.due.sighting.subject} could not be swept: {error}"
        self._say(f"{self.due.sweep}: {text}")
        self._tell("failed", text, {**self._facts, "error": error, "tries": failures})

    def _lost(self) -> None:
        if self.outcome is not None:
            return  # said already
        self._say(f"{self.due.sweep}: another scheduler has taken it over; it is stopped here")
        self._end("lost", None)

    def _tell_seen(self) -> None:
        subject, trigger = self.due.sighting.subject, self.due.sighting.trigger
        self._tell("seen", f"{subject} is new ({trigger}) and is swept", self._facts)

    @property
    def _facts(self) -> dict[str, Any]:
        return {
            "sweep": self.due.sweep,
            "model": self.due.sighting.subject,
            "base": redacted_text(self.due.sighting.base),
            "trigger": self.due.sighting.trigger,
            "task": self.schedule.config.task.name,
            "log": str(self._log),
        }

    # What the claim says -----------------------------------------------------------------------

    def _note(self, state: State, **said: Any) -> bool:
        record = replace(self._record, state=state, schedule=self.schedule.name, **said)
        if not self.claim.say(record):
            self._lost()
            return False
        self._record = record
        return True

    def _note_end(self, state: State, *, let_go: bool = True, **said: Any) -> bool:
        """Record how it has ended and let the claim go; whether it was still its own.

        One that is not let go, as something may still be at work, is free after its lease.
        """
        held = self._insist(lambda: self._note(state, **said))
        if held:
            self._end(state, self._record.error)
            if let_go:
                self._let_go()
        return held

    def _let_go(self) -> None:
        try:
            self._insist(self.claim.release)
        except StoreError as error:
            self._say(f"{self.due.sweep}: {error}; its claim is free after its lease")

    def _insist(self, work: Callable[[], T]) -> T:
        """What was done must not be lost to a store that is away for a moment."""
        give_up = time.monotonic() + self._lease_seconds / 2
        while True:
            try:
                return work()
            except StoreError as error:
                if self._hurry.is_set() or time.monotonic() > give_up:
                    raise
                self._say(f"{self.due.sweep}: {error}; tried again")
                self._hurry.wait(min(2.0, self._lease_seconds / BEATS_PER_LEASE))

    def _in(self, seconds: float) -> str:
        return (self._now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")

    def _end(self, state: State | str, error: str | None) -> None:
        self.outcome = Outcome(
            self.schedule.name,
            self.due.sweep,
            self.due.sighting.subject,
            state,
            error,
            self._record.tries_left,
            self._record.best,
        )


def backoff_seconds(schedule: Schedule, failures: int) -> float:
    """Seconds before the try that follows so many failures; a day at most."""
    return float(min(86_400.0, schedule.settings.backoff * 2 ** max(0, failures - 1)))


def is_before(record: ClaimRecord, now: datetime) -> bool:
    """Whether the next try of a claim is not due yet, by the clock on the wall."""
    if record.not_before is None:
        return False
    try:
        return now < datetime.fromisoformat(record.not_before)
    except ValueError:
        return False


def promotion_of(promote: Promote, tracking_uri: str, sweep: str, base_uri: str) -> dict[str, Any]:
    """What came of asking whether a sweep's best is to be the champion; an error is a reason."""
    try:
        return dict(vars(promote(tracking_uri, sweep, base_uri=base_uri)))
    except Exception as error:  # of MLflow, torch or the disk: the sweep is done all the same
        return {"promoted": False, "reason": f"not promoted: {one_line(error)}"}
