"""What befalls the trials and confirmations of a sweep, on its way through the journal to MLflow.

Whoever appends waits for nothing but the journal; a thread of the relay's own tells MLflow.

What a call has done whose answer was lost is found or done again alike: a run is looked for by its
token before it is created in doubt, a point of a metric carries the time of its record, and the
rest says the same when it is said twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search.tracking.facts import STEP_LOSS, Point, flattened
from search.tracking.journal import Journal, JournalError, Record
from search.tracking.mlflow import RefusedError
from search.tracking.tracker import Tracker
from spaces.errors import RanksweepError, TrackingError
from spaces.plan import Plan

logger = logging.getLogger(__name__)

#: First and longest pause between two tries to tell an MLflow that is away.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

#: Plans of started trials that are kept until their files are written; others are derived again.
PLANS_KEPT = 8


class Relay:
    """Tells MLflow what stands in a journal, in order per trial, while the search goes on.

    What the journal does not take, for the disk is full, is kept in order and appended later.

    Args:
        journal: what is to be told.
        tracker: where to.
        sweep_run_id: the run of the sweep, whose children the trials are.
        plan_of: derives the plan of a choice, where it is no longer at hand.
        say: shows a line to the user; called from the thread.
        on_run: hears the number and the run id of every trial whose run is created; called from
            the thread.
        shown_of: what a person is shown of the test rows of a confirmation, path -> content;
            called from the thread with their file.
        first_pause_s, longest_pause_s: between two tries to tell an MLflow that is away.
    """

    def __init__(
        self,
        journal: Journal,
        tracker: Tracker,
        sweep_run_id: str,
        *,
        plan_of: Callable[[Mapping[str, Any]], Plan],
        say: Callable[[str], object] = logger.info,
        on_run: Callable[[int, str], object] = lambda number, run_id: None,
        shown_of: Callable[[bytes], Mapping[str, str | bytes]] = lambda content: {},
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self.journal, self.tracker = journal, tracker.impatient()
        self._sweep_run_id = sweep_run_id
        self._plan_of, self._say, self.on_run = plan_of, say, on_run
        self._shown_of = shown_of
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._plans: dict[int, Plan] = {}
        self._refused: set[int] = set()
        self._failed: dict[int, str] = {}
        self._is_away = False
        self._changed = threading.Condition()
        self._news, self._idle, self._hurried, self._stopped = True, False, False, False
        self._told = 0
        self._appending = threading.Lock()
        self._unwritten: deque[Callable[[], None]] = deque()
        self._cannot_append: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="mlflow-relay", daemon=True)
        self._thread.start()

    def append(self, write: Callable[[], None] | None = None) -> None:
        """Append to the journal, with what it would not take before; MLflow hears of it later."""
        with self._appending:
            if write is not None:
                self._unwritten.append(write)
            try:
                while self._unwritten:
                    self._unwritten[0]()
                    self._unwritten.popleft()
            except JournalError as error:
                if str(error) not in self._cannot_append:
                    self._cannot_append.add(str(error))
                    self._say(f"{error}; what is to be logged is kept in memory meanwhile")
        with self._changed:
            self._news, self._idle = True, False
            self._changed.notify_all()

    def keep_plan(self, number: int, plan: Plan) -> None:
        """Have the plan of a trial at hand, whose start is about to be appended."""
        if len(self._plans) < PLANS_KEPT:
            self._plans[number] = plan

    def close(self, patience_s: float = 30.0, hurried: Callable[[], bool] = lambda: False) -> int:
        """Wait until MLflow has been told all, `patience_s` from the last that it was told.

        It waits no longer once it is `hurried`. Says and returns how many records are left, which
        stay in the journal.
        """
        self.append()
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            told, give_up = self._told, time.monotonic() + patience_s
            while not self._idle and not hurried() and time.monotonic() < give_up:
                self._changed.wait(0.2)
                if self._told != told:
                    told, give_up = self._told, time.monotonic() + patience_s
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(1.0)  # it may be in a call that MLflow does not answer
        left = self.journal.waiting + len(self._unwritten)
        if left:
            self._say(
                f"MLflow has not been told {left} records of trials; they are kept in the sweep's "
                "folder, and launch --resume writes them"
            )
        return left

    # In the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        pause = self._first_pause_s
        while self._wait_for_news():
            told = self._told
            try:
                while not self._stopped and self._tell_next():
                    pass
                problem = next(iter(self._failed.values()), None)
            except (TrackingError, JournalError) as error:
                problem = str(error)
            pause = self._first_pause_s if self._told != told or self._hurried else 2 * pause
            if problem is not None and not self._stopped:
                self._note_away(problem)
                self._wait_before_another_try(min(pause, self._longest_pause_s))

    def _wait_before_another_try(self, seconds: float) -> None:
        with self._changed:
            before = self._hurried
            self._changed.wait_for(lambda: self._stopped or self._hurried != before, seconds)
            self._news = True

    def _wait_for_news(self) -> bool:
        """Wait until there may be something to tell; False where the thread is to end."""
        with self._changed:
            self._idle = not self._news
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._news or self._stopped)
            self._news = self._idle = False
            self._failed.clear()
            return not self._stopped

    def _tell_next(self) -> bool:
        """Tell MLflow all that waits of one trial; False where nothing more can be told now.

        Raises:
            TrackingError: MLflow is away.
        """
        records = self.journal.next_of({*self._refused, *self._failed})
        if not records:
            return False
        number = records[0].number
        try:
            self._tell(number, records)
        except RefusedError as error:
            self._refused.add(number)
            self._say(f"{_named(number)} is not logged: {error}")
            return True
        except JournalError:
            raise
        except Exception as error:  # of MLflow's client, or of what it keeps artifacts with
            self.tracker.run(self._sweep_run_id)  # else MLflow is away, for all trials
            logger.debug("%s cannot be logged", _named(number), exc_info=True)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._failed[number] = f"{_named(number)} cannot be logged now ({reason})"
            return True
        self.journal.put_aside(records)
        self._plans.pop(number, None)
        with self._changed:
            self._told += len(records)
        if self._is_away and not self._failed:
            self._is_away = False
            self._say("MLflow answers again; what it missed is being logged")
        return True

    def _note_away(self, problem: str) -> None:
        if not self._is_away:
            self._is_away = True
            self._say(f"{problem}; what is not logged is kept in the sweep's folder, tried again")

    def _tell(self, number: int, records: Sequence[Record]) -> None:
        """Write the records of one trial: its run, its files, its numbers, its end."""
        tracker, run = self.tracker, self.journal.run_of(number)
        run_id = run.run_id if run.sweep_run_id == self._sweep_run_id else None
        start = next((record for record in records if record.kind == "start"), None)
        end = next((record for record in records if record.kind == "end"), None)
        tries = run.tries
        if run_id is None:
            if start is None:
                raise RefusedError("its run belongs to another run of the sweep")
            run_id = self._open_run(number, start, run.token, in_doubt=tries > 0)
            tries += 1
        if start is not None:
            plan = self._plan(number, start.body)
            tracker.log_plan(run_id, self._sweep_run_id, start.body["choice"], plan)
        tracker.log(
            run_id,
            params=None if start is None else flattened(start.body["choice"]),
            metrics=[point for record in records for point in points_of(record)],
            tags=_tags(records),
            name=None if end is None else end.body.get("name"),
        )
        if end is not None:
            if (test_rows := self.journal.test_rows_of(number)) is not None:
                tracker.log_test_rows(run_id, test_rows, self._shown(number, test_rows))
            if tries > 1:
                tracker.delete_doubles(run_id, run.token)
            tracker.end(run_id, end.body["state"], ended_ms=end.at_ms)

    def _shown(self, number: int, test_rows: bytes) -> Mapping[str, str | bytes]:
        try:
            return self._shown_of(test_rows)
        except Exception as error:  # of whatever draws: the rows themselves are kept all the same
            logger.warning("%s: its test rows are not drawn: %s", _named(number), error)
            return {}

    def _open_run(self, number: int, start: Record, token: str, in_doubt: bool) -> str:
        self.journal.about_to_create(number)
        run_id = self.tracker.open_trial(
            self._sweep_run_id,
            start.body.get("number", number),
            start.body["choice"],
            start.body["tags"],
            kind=start.body.get("kind", "trial"),
            token=token,
            started_ms=start.at_ms,
            in_doubt=in_doubt,
        )
        self.journal.created(number, run_id, self._sweep_run_id)
        if number >= 0:
            try:
                self.on_run(number, run_id)
            except Exception as error:  # the journal knows it, whatever befell the listener
                logger.debug("the run of trial %d is noted in the journal alone: %s", number, error)
        return run_id

    def _plan(self, number: int, start: Mapping[str, Any]) -> Plan | None:
        plan = self._plans.get(number)
        if plan is None:
            try:
                plan = self._plan_of(start["choice"])
            except RanksweepError as error:
                logger.warning("%s: its plan cannot be kept in MLflow: %s", _named(number), error)
                return None
        if plan.digest != start["tags"]["plan_digest"]:
            logger.warning("%s: its plan is derived otherwise now and not kept", _named(number))
            return None
        return plan


_IN_TAGS = ("epoch", "head_params")
"""What a record says among its metrics that is no curve."""


def _tags(records: Sequence[Record]) -> dict[str, Any]:
    """What the records of one trial say of it that changes."""
    tags: dict[str, Any] = {}
    for record in records:
        told = record.body.get("metrics", {})
        tags |= {key: int(told[key]) for key in _IN_TAGS if key in told}
        if record.kind == "epoch":
            tags["epoch"] = int(record.body["epoch"])
        if record.kind == "end":
            tags |= {"error": record.body["error"], "collapsed": record.body.get("collapsed")}
    return tags


def points_of(record: Record) -> list[Point]:
    """The metrics of a record, at the step and the time that it says: epochs, but for the losses
    within one, which are by optimizer steps."""
    step = int(record.body.get("epoch", 0))
    points = [
        Point(key, float(value), step, record.at_ms)
        for key, value in record.body["metrics"].items()
        if key not in _IN_TAGS
    ]
    losses = record.body.get("losses", ())
    return points + [Point(STEP_LOSS, float(loss), int(at), record.at_ms) for at, loss in losses]


def _named(number: int) -> str:
    """A trial, or one of the confirmations, whose numbers in the journal are below zero."""
    return f"trial {number}" if number >= 0 else "a confirmation run"
