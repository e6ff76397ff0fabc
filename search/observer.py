"""Who watches a search: what Tune reports goes to the view and to MLflow."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from search.config import SweepConfig
from search.kept_weights import KeptWeights
from search.live import View
from search.tracking import Tracker
from spaces.choice import Choice
from spaces.errors import JobError, TrackingError
from spaces.plan import Plan

if TYPE_CHECKING:
    from search.searcher import EndState, StudySearcher

logger = logging.getLogger(__name__)

TRACKING_RETRY_S = 30.0  # between two tries to write to an MLflow that is away


class SweepObserver:
    """Writes what Tune reports to the view and to MLflow.

    What MLflow does not take, for it is away, is kept in order and written later; training does not
    wait for it.
    """

    def __init__(
        self,
        config: SweepConfig,
        sweep_run_id: str,
        best: Sequence[Mapping[str, Any]],
        tracker: Tracker,
        view: View,
        searcher: StudySearcher,
        kept: KeptWeights,
    ) -> None:
        self._config, self._sweep_run_id, self._tracker = config, sweep_run_id, tracker
        self._view, self._searcher, self._kept = view, searcher, kept
        self._runs: dict[int, str] = {}
        self._methods: dict[int, tuple[str, int]] = {}
        self._queued: dict[int, None] = {}
        self._shown: set[int] = set()
        self._unwritten: deque[Callable[[], None]] = deque()
        self._try_again = 0.0
        self._sign = 1.0 if config.search.mode == "max" else -1.0
        self._best = max((self._sign * row["value"] for row in best), default=None)

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        arm = self._searcher.arm_of(choice)
        self._methods[number] = arm, plan.trainable_params
        self._queued[number] = None
        self._show_next()
        self._write(partial(self._start, number, arm, choice, plan))

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        value = float(metrics[self._config.search.metric])
        self._show(number)
        self._view.trial_epoch(number, epoch, self._config.train.epochs, value)
        logged = _epoch_metrics(metrics)
        self._write(lambda: self._tracker.log_epoch(self._runs[number], epoch, logged))

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        value = metrics.get(self._config.search.metric)
        self._show(number)
        self._view.trial_finished(number, state, value)
        self._shown.discard(number)
        self._show_next()
        if error is not None and state == "failed":
            self._view.message(f"trial {number} failed: {error}")
        method, params = self._methods.get(number, ("", 0))
        if state == "complete":
            self._keep_weights(number)
        if state == "complete" and value is not None:
            gain = self._sign * float(value)
            if self._best is None or gain > self._best:
                self._best = gain
                self._view.best(number, method, float(value), params)
        last = {k: float(metrics[k]) for k in ("head_params",) if metrics.get(k) is not None}
        self._write(
            lambda: self._tracker.finish_trial(self._runs[number], state, metrics=last, error=error)
        )

    def _keep_weights(self, number: int) -> None:
        try:
            self._kept.trial_completed(number)
        except (OSError, JobError) as error:  # a full disk must not end the search
            self._view.message(f"the weights of trial {number} are not kept: {error}")

    def write_the_rest(self) -> None:
        """Try once more to write what MLflow has not taken, and say what is left."""
        self._try_again = 0.0
        self._flush()
        if self._unwritten:
            self._view.message(
                f"MLflow did not take {len(self._unwritten)} writes; the study in the sweep's "
                "folder holds every trial"
            )

    def _show_next(self) -> None:
        """One trial more than the groups can hold waits; it is shown when its turn comes."""
        while self._queued and len(self._shown) < self._config.cluster.groups:
            self._show(next(iter(self._queued)))

    def _show(self, number: int) -> None:
        if number in self._queued:
            del self._queued[number]
            self._shown.add(number)
            self._view.trial_started(number, *self._methods[number])

    def _start(self, number: int, arm: str, choice: Choice, plan: Plan) -> None:
        run_id = self._tracker.start_trial(
            self._sweep_run_id, number, choice.as_dict(), plan, {"arm": arm}
        )
        self._runs[number] = run_id
        with contextlib.suppress(KeyError):  # the trial may have ended by now
            self._searcher.set_run_id(number, run_id)

    def _write(self, work: Callable[[], None]) -> None:
        self._unwritten.append(work)
        self._flush()

    def _flush(self) -> None:
        if time.monotonic() < self._try_again:
            return
        while self._unwritten:
            try:
                self._unwritten[0]()
            except TrackingError as error:
                self._try_again = time.monotonic() + TRACKING_RETRY_S
                self._view.message(f"{error}; what is not logged is kept and tried again")
                return
            except KeyError:
                logger.warning("a write for a run that was never opened is dropped")
            self._unwritten.popleft()


def _epoch_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    hidden = ("epoch", "epochs_done", "trainable_params", "head_params")
    return {
        key: float(value)
        for key, value in metrics.items()
        if key not in hidden and isinstance(value, int | float)
    }
