"""Who watches a search: what Tune reports goes to the view and into the journal for MLflow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from search.config.sweep import SweepConfig
from search.progress import Progress
from search.redaction import redacted_text
from search.study.study import CURVE, ENDED_AS, INTERRUPTED, REASON
from search.tracking.facts import plan_counts
from search.tracking.journal import Journal, JournalError
from search.tracking.relay import Replay
from search.tracking.weights import KeptWeights
from spaces.choice import Choice
from spaces.errors import JobError
from spaces.plan import Plan

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from search.study.ranking import BestChoice
    from search.study.trial import EndState
    from search.tuning.searcher import StudySearcher


class SweepObserver:
    """Writes what Tune reports to the view and to the journal; MLflow is told by the replay.

    What the journal does not take, for the disk is full, is kept in order and appended later.
    """

    def __init__(
        self,
        config: SweepConfig,
        best: Sequence[BestChoice],
        journal: Journal,
        replay: Replay,
        view: Progress,
        searcher: StudySearcher,
        kept: KeptWeights,
    ) -> None:
        self._config, self._journal, self._replay = config, journal, replay
        self._view, self._searcher, self._kept = view, searcher, kept
        self._methods: dict[int, tuple[str, int]] = {}
        self._queued: dict[int, None] = {}
        self._shown: set[int] = set()
        self._repeats: set[int] = set()
        self._unwritten: deque[Callable[[], None]] = deque()
        self._said: set[str] = set()
        self._sign = 1.0 if config.search.mode == "max" else -1.0
        self._best = max((self._sign * row.value for row in best), default=None)

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        arm = self._searcher.arm_of(choice)
        self._methods[number] = arm, plan.trainable_params
        self._queued[number] = None
        self._show_next()
        self._replay.keep_plan(number, plan)
        credits = self._searcher.credits(number)
        if "repeat" in credits:
            self._repeats.add(number)
        body = {
            "choice": choice.as_dict(),
            "tags": {"arm": arm, "plan_digest": plan.digest, **credits},
            "metrics": plan_counts(plan),
        }
        self._write(partial(self._journal.start, number, body, _now_ms()))

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        value = float(metrics[self._config.search.metric])
        self._show(number)
        self._view.trial_epoch(number, epoch, self._config.train.epochs, value)
        body = {"metrics": _epoch_metrics(metrics)}
        self._write(partial(self._journal.epoch, number, epoch, body, _now_ms()))
        if self._journal.gave_up_epochs:
            self._say_once(
                "MLflow has been away for so long that of trials in between only the newest epoch "
                "is kept for it; the study holds them all"
            )

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        value = metrics.get(self._config.search.metric)
        if state == "cancelled" and number in self._queued:  # it was never shown to begin
            del self._queued[number]
        else:
            self._show(number)
            self._view.trial_finished(number, state, value)
        self._shown.discard(number)
        if state != "cancelled":
            self._show_next()
        if error is not None and state == "failed":
            self._view.message(f"trial {number} failed: {error}")
        method, params = self._methods.pop(number, ("", 0))
        if state == "complete":
            self._keep_weights(number)
        if state == "complete" and value is not None and number not in self._repeats:
            gain = self._sign * float(value)
            if self._best is None or gain > self._best:
                self._best = gain
                self._view.best(number, method, float(value), params)
        last = {k: float(metrics[k]) for k in ("head_params",) if metrics.get(k) is not None}
        body = end_of_trial(state, error, last)
        self._write(partial(self._journal.end, number, body, _now_ms()))

    def _keep_weights(self, number: int) -> None:
        try:
            self._kept.trial_completed(number)
        except (OSError, JobError) as error:  # a full disk must not end the search
            self._view.message(f"the weights of trial {number} are not kept: {error}")

    def close(self, hurried: Callable[[], bool] = lambda: False) -> int:
        """Wait for MLflow to be told the rest, while it answers; say and return what is left."""
        self._flush()
        left = self._replay.close(hurried=hurried) + len(self._unwritten)
        if left:
            self._view.message(
                f"MLflow has not been told {left} records of trials; they are kept in the sweep's "
                "folder, and launch --resume writes them"
            )
        return left

    def _show_next(self) -> None:
        """One trial more than the groups can hold waits; it is shown when its turn comes."""
        while self._queued and len(self._shown) < self._config.cluster.groups:
            self._show(next(iter(self._queued)))

    def _show(self, number: int) -> None:
        if number in self._queued:
            del self._queued[number]
            self._shown.add(number)
            self._view.trial_started(number, *self._methods[number])

    def _write(self, append: Callable[[], None]) -> None:
        self._unwritten.append(append)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten[0]()
                self._unwritten.popleft()
        except JournalError as error:
            self._say_once(f"{error}; what is to be logged is kept in memory meanwhile")
        self._replay.wake()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._view.message(text)


def end_of_trial(state: str, error: str | None, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the journal says of a trial that is over."""
    return {
        "state": state,
        "error": None if error is None else redacted_text(error),
        "metrics": dict(metrics),
    }


def end_what_was_left_open(journal: Journal, study: optuna.Study, objective: str) -> None:
    """End in the journal the trials that a dead driver has left open, as the study says of them.

    A driver may die after it has told the study and before it has told the journal, which then is
    given the last epoch too. `objective` is what the study's intermediate values are of.
    """
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for number, epoch in journal.left_open().items():
        state, at_ms, reason = "interrupted", _now_ms(), None
        trial = trials.get(number)
        if trial is not None:
            if INTERRUPTED not in trial.user_attrs:
                state = ENDED_AS.get(trial.state.name, "interrupted")
            if trial.datetime_complete is not None:
                at_ms = int(trial.datetime_complete.timestamp() * 1000)
            reason = trial.user_attrs.get(REASON)
            curve = _curve(trial, objective)
            newest = max(curve, default=0)
            if newest > epoch:
                journal.epoch(number, newest, {"metrics": curve[newest]}, at_ms)
        journal.end(number, end_of_trial(state, reason, {}), at_ms)


def _curve(trial: FrozenTrial, objective: str) -> dict[int, dict[str, float]]:
    """What the study has of a trial's epochs."""
    if CURVE in trial.user_attrs:
        return {int(epoch): values for epoch, values in trial.user_attrs[CURVE].items()}
    return {epoch: {objective: value} for epoch, value in trial.intermediate_values.items()}


def _now_ms() -> int:
    return int(time.time() * 1000)


def _epoch_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    hidden = ("epoch", "epochs_done", "trainable_params", "head_params")
    return {
        key: float(value)
        for key, value in metrics.items()
        if key not in hidden and isinstance(value, int | float)
    }
