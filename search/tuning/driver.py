"""The driver's eye on Tune: every trial's start, epochs and end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import cloudpickle, tune
from ray.tune.experiment import Trial
from ray.tune.result import AUTO_RESULT_KEYS, DONE, TRIAL_ID

from search.interrupts import Interrupts
from search.study.steering import BY_USER
from search.study.trial import EndedTrial, EndState
from search.tuning.searcher import StudySearcher
from search.tuning.trial import one_line, trial_of_job
from spaces.choice import Choice
from spaces.plan import Plan

logger = logging.getLogger(__name__)

#: How often the queue is asked which jobs were taken.
LOOK_S = 0.2
_TUNE_KEYS = frozenset({*AUTO_RESULT_KEYS, DONE, TRIAL_ID, "experiment_tag"})


class Observer(Protocol):
    """Who wants to know of a search as it goes. An exception in it is logged and stops there."""

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        """Tune has started the trial; its job may still wait in the queue."""

    def trial_began(self, number: int, at_ms: int) -> None:
        """A group has taken the trial's job, at this moment (milliseconds of Unix time)."""

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """The trial has ended an epoch (from 1)."""

    def trial_look(self, number: int, share: float, metrics: Mapping[str, Any]) -> None:
        """The trial was measured after training on a share of the rows."""

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        """A trial that was started is over: its state, what its last epoch reported, and why where
        it is not complete."""


class DriverCallback(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Sees every Tune trial start, report and end: cancels its job, tells the observer and
    ends the search when there is a reason to.

    Tune ends trials without a word to searcher or callback when the time budget is spent or the
    user interrupts; they are found at the end of each step of its loop.
    """

    def __init__(
        self,
        searcher: StudySearcher,
        queue: Any,
        observer: Observer | None,
        should_stop: Callable[[], str | None],
        interrupts: Interrupts,
    ) -> None:
        self._searcher = searcher
        self._queue = queue
        self._observer = observer
        self._should_stop = should_stop
        self._trials: dict[str, Trial] = {}
        self._just_over: list[Trial] = []
        self._started: set[str] = set()
        self._metrics: dict[str, dict[str, Any]] = {}
        self._cancels: list[Any] = []
        self._begun: Any = None
        self._waiting: set[int] = set()
        self._next_look = 0.0
        self._interrupts = interrupts
        self.stop_reason: str | None = None
        searcher.read_error = self._error_of

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Know every trial, those too that fail before they start."""
        self._meet(trials)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Tell the observer that a trial runs."""
        self._started.add(trial.trial_id)
        found = self._searcher.open_trial(trial.trial_id)
        if found is not None:
            self._waiting.add(found.number)
            self._tell("trial_started", found.number, found.choice, found.plan)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tell the observer of an epoch, or of a look."""
        if self._searcher.open_trial(trial.trial_id) is None:
            return  # it was cut off and has not heard of it yet
        self._has_begun(trial.config["number"])
        metrics = {k: v for k, v in result.items() if k not in _TUNE_KEYS}
        if "look" in result:
            self._tell("trial_look", trial.config["number"], float(result["look"]), metrics)
            return
        self._metrics[trial.trial_id] = metrics
        self._tell("trial_epoch", trial.config["number"], int(result["epoch"]), metrics)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial has returned, was stopped by the scheduler or has failed."""
        self._just_over.append(trial)
        ended = self._searcher.ended_trial(trial.trial_id)
        if ended is None:
            return
        if ended.state != "complete":
            self._cancel(ended.number)
        self._tell_end(trial.trial_id, ended)

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Find the trials that Tune has ended without a word, and those that now train."""
        self._meet(trials)
        self._look_who_began()
        self._do_as_asked()
        for trial in self._just_over:
            # The means of each metric over its last epochs: 30 KB a trial, and nothing reads them.
            trial.metric_analysis.clear()
            trial.metric_n_steps.clear()
        self._just_over.clear()
        for trial_id in self._searcher.open_ids:
            trial = self._trials.get(trial_id)
            if trial is not None and trial.status == Trial.TERMINATED:
                self.cut_off(trial_id, self.stop_reason or "the time budget was spent")
        if self._interrupts.heard:
            self.stop_reason = "interrupted"
            self.cut_off_all("interrupted")
        elif self.stop_reason is None:
            self.stop_reason = self._should_stop()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether Tune is to stop a single trial: never."""
        return False

    def stop_all(self) -> bool:
        """Whether Tune is to end the whole search."""
        return self.stop_reason is not None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`, which ranksweep does not use.
        return {}

    def cut_off_all(self, reason: str) -> None:
        """End every trial that is still open."""
        for trial_id in self._searcher.open_ids:
            self.cut_off(trial_id, reason)

    def cut_off(self, trial_id: str, reason: str, state: EndState = "cancelled") -> None:
        """End one trial from outside: its job, its Optuna trial, and a word to the observer."""
        found = self._searcher.open_trial(trial_id)
        if found is None:
            return
        self._cancel(found.number)
        ended = self._searcher.cancel(trial_id, reason, state)
        if ended is not None:
            self._tell_end(trial_id, ended)

    def settle(self) -> None:
        """After Tune's loop: cancel again what a function may have submitted since then."""
        for ended in self._searcher.ended:
            if ended.state in ("cancelled", "stopped"):
                self._cancel(ended.number)
        if self._cancels:
            ray.wait(self._cancels, num_returns=len(self._cancels), timeout=10)
        for answer in self._cancels:
            try:
                ray.get(answer, timeout=0)
            except Exception as error:  # whatever: the queue may be gone, or never knew the job
                logger.debug("a job could not be cancelled: %s", one_line(str(error)))
        self._cancels.clear()

    def _do_as_asked(self) -> None:
        """Stop the trials that users want stopped, and judge what they want trained."""
        steering = self._searcher.proposals.steering
        if steering is None or self.stop_reason is not None:
            return
        self._searcher.proposals.attend()
        for request in steering.to_stop():
            trial_id = self._searcher.id_of(request.number)
            if trial_id is None:
                steering.refuse_where_over(request)
                continue
            self.cut_off(trial_id, BY_USER, "stopped")
            steering.accept(request)

    def _look_who_began(self) -> None:
        """Tell the observer of the jobs that groups have taken, which the queue knows.

        It is asked a few times a second, and not waited for.
        """
        now = time.monotonic()
        if self._begun is None and self._waiting and now >= self._next_look:
            self._next_look = now + LOOK_S
            self._begun = self._queue.begun.remote()
        self._hear_who_began(0.0)

    def _has_begun(self, number: int) -> None:
        """Before anything else is told of a trial: when its job was taken, if it was."""
        for _ in range(2):  # what was asked before may be older than the job
            if number in self._waiting:
                self._begun = self._begun or self._queue.begun.remote()
                self._hear_who_began(1.0)

    def _hear_who_began(self, timeout_s: float) -> None:
        if self._begun is None or not ray.wait([self._begun], timeout=timeout_s)[0]:
            return
        answer, self._begun = self._begun, None
        try:
            begun = ray.get(answer)
        except ray.exceptions.RayError:  # whoever waits for a job says so
            return
        for job_id, at in begun.items():
            job = trial_of_job(job_id)  # of several the first
            if job is not None and job.seed is None and job.number in self._waiting:
                self._waiting.discard(job.number)
                self._tell("trial_began", job.number, int(at * 1000))

    def _meet(self, trials: list[Trial]) -> None:
        # Tune appends to its list, and a step must not cost more for the trials that are over.
        self._trials.update({each.trial_id: each for each in trials[len(self._trials) :]})

    def _tell_end(self, trial_id: str, ended: EndedTrial) -> None:
        metrics = self._metrics.pop(trial_id, {})
        self._has_begun(ended.number)
        self._waiting.discard(ended.number)
        if trial_id in self._started:  # Tune may come to the end of one that was cut off
            self._started.discard(trial_id)
            self._tell("trial_ended", ended.number, ended.state, metrics, ended.reason)

    def _cancel(self, number: int) -> None:
        names = self._searcher.job_names(number)
        self._cancels += [self._queue.cancel.remote(name) for name in names]

    def _tell(self, what: str, *arguments: Any) -> None:
        if self._observer is None:
            return
        try:
            getattr(self._observer, what)(*arguments)
        except Exception as error:  # a tracking server that is away must not end the search
            logger.warning(
                "%s: the observer failed (%s); the search goes on", what, one_line(str(error))
            )
            logger.debug("what the observer raised", exc_info=True)

    def _error_of(self, trial_id: str) -> str | None:
        trial = self._trials.get(trial_id)
        if trial is None:
            return None
        path = trial.pickled_error_file
        if path is None or not Path(path).is_file():
            return None
        error = cloudpickle.loads(Path(path).read_bytes())
        return one_line(str(getattr(error, "cause", None) or error))
