"""What Tune reports of a search goes to the view, and into the journal for MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from search.config.sweep import SweepConfig
from search.progress import Progress
from search.study.trial import EndState
from search.tracking.facts import look_metrics, now_ms, plan_counts
from search.tracking.journal import end_of_trial
from search.tracking.relay import Relay
from search.tracking.run_names import measured_name, trial_name
from search.tracking.weights import KeptWeights
from spaces.choice import Choice
from spaces.errors import JobError
from spaces.plan import Plan
from trainables.resident.jobs import LOSSES
from trainables.tasks.collapse import is_collapsed

if TYPE_CHECKING:
    from search.queries.best_choice import BestChoice
    from search.tuning.searcher import StudySearcher


class Recorder:
    """Writes what Tune reports to the view and, through the relay, to the journal and MLflow.

    `leader` gives the best choice of the search as it stands, None before there is one.
    """

    def __init__(
        self,
        config: SweepConfig,
        leader: Callable[[], BestChoice | None],
        relay: Relay,
        view: Progress,
        searcher: StudySearcher,
        kept: KeptWeights,
    ) -> None:
        self._config, self._relay = config, relay
        self._view, self._searcher, self._kept = view, searcher, kept
        self._leader = leader
        self._methods: dict[int, tuple[str, int]] = {}
        self._epochs: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._unbegun: dict[int, dict[str, Any]] = {}
        self._said_that_epochs_go = False

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        arm = self._searcher.arm_of(choice)
        self._methods[number] = arm, plan.trainable_params
        self._epochs[number] = self._config.train.epochs * plan.length
        self._names[number] = trial_name(number, choice.as_dict(), arm)
        self._relay.keep_plan(number, plan)
        own = self._searcher.tags_of(number)
        self._unbegun[number] = {
            "choice": choice.as_dict(),
            "tags": {"arm": arm, "plan_digest": plan.digest, **own},
            "metrics": plan_counts(plan),
        }

    def trial_began(self, number: int, at_ms: int) -> None:
        if number in self._unbegun:
            self._view.trial_started(number, *self._methods[number])
            self._append_start(number, at_ms)

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        value = float(metrics[self._config.search.metric])
        self.trial_began(number, now_ms())  # where nobody has said when
        collapsed = is_collapsed(metrics)
        self._view.trial_epoch(number, epoch, self._epochs[number], value, collapsed)
        body: dict[str, Any] = {"metrics": _epoch_metrics(metrics)}
        if losses := metrics.get(LOSSES):
            body[LOSSES] = [[int(step), float(loss)] for step, loss in losses]
        journal = self._relay.journal
        self._relay.append(partial(journal.epoch, number, epoch, body, now_ms()))
        if journal.gave_up_epochs and not self._said_that_epochs_go:
            self._said_that_epochs_go = True
            self._view.message(
                "MLflow has been away for so long that of trials in between only the newest epoch "
                "is kept for it; the study holds them all"
            )

    def trial_look(self, number: int, share: float, metrics: Mapping[str, Any]) -> None:
        value = float(metrics[self._config.search.metric])
        self.trial_began(number, now_ms())  # where nobody has said when
        self._view.trial_look(number, share, value)
        body = {"metrics": look_metrics({share: value})}
        self._relay.append(partial(self._relay.journal.look, number, body, now_ms()))

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        value = metrics.get(self._config.search.metric)
        never_began = state in ("cancelled", "stopped") and number in self._unbegun
        if never_began:  # it waited
            self._append_start(number, now_ms())
        else:
            self.trial_began(number, now_ms())
        if not (never_began and state == "cancelled"):
            self._view.trial_finished(number, state, value, None, is_collapsed(metrics))
        if error is not None and state == "failed":
            self._view.message(f"trial {number} failed: {error}")
        self._methods.pop(number, None)
        if state == "complete":
            self._keep_weights(number)
            if (best := self._leader()) is not None:
                self._view.best(best.number, best.arm, best.value, best.trainable_params)
        last = {k: float(metrics[k]) for k in ("head_params",) if metrics.get(k) is not None}
        name = measured_name(self._names.pop(number, ""), self._config.search.metric, value)
        body = end_of_trial(state, error, last, collapsed=is_collapsed(metrics), name=name)
        self._relay.append(partial(self._relay.journal.end, number, body, now_ms()))

    def _keep_weights(self, number: int) -> None:
        try:
            self._kept.trial_completed(number)
        except (OSError, JobError) as error:  # a full disk must not end the search
            self._view.message(f"the weights of trial {number} are not kept: {error}")

    def _append_start(self, number: int, at_ms: int) -> None:
        body = self._unbegun.pop(number)
        self._relay.append(partial(self._relay.journal.start, number, body, at_ms))


def _epoch_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    hidden = ("epoch", "epochs_done", "trainable_params", "head_params")
    return {
        key: float(value)
        for key, value in metrics.items()
        if key not in hidden and isinstance(value, int | float)
    }
