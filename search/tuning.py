"""The search itself: Ray Tune runs light trials that hand their plans to the resident workers.

A Tune trial trains nothing. It derives the plan, submits a job to the queue and passes the job's
epochs on to Tune, whose scheduler may stop it. A stopped function learns of that only at its next
report, so a callback on the driver cancels the job of every trial that Tune stops.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import ray
from ray import cloudpickle, tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.result import AUTO_RESULT_KEYS, DONE, TRIAL_ID
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from search.interrupts import Interrupts
from spaces.choice import Choice
from spaces.errors import ConfigError, JobError
from spaces.methods import make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import Profile
from spaces.target import BaseSize, TargetModule

if TYPE_CHECKING:
    # A trial's process imports this module and has no use for Optuna.
    from search.searcher import EndedTrial, EndState, StudySearcher

logger = logging.getLogger(__name__)

#: Share of its node that a light trial asks for; Tune takes no zero.
TRIAL_SHARE = 0.0001

_TUNE_KEYS = frozenset({*AUTO_RESULT_KEYS, DONE, TRIAL_ID, "experiment_tag"})


EndedBy = Literal["trials", "time_budget", "shortfall", "stopped"]


class Observer(Protocol):
    """Who wants to know of a search as it goes. An exception in it is logged and stops there."""

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        """Tune has started the trial; its job may still wait in the queue."""

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """The trial has ended an epoch (from 1)."""

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        """A trial that was started is over: its state, what its last epoch reported, and why where
        it is not complete."""


@dataclass(frozen=True)
class TuneOutcome:
    """What a search did: its trials of this run, by number, and why it ended.

    ``trials``: all were handed out; ``time_budget``: it was spent; ``shortfall``: nothing more
    could be asked, `reason` says why; ``stopped``: `should_stop` gave the `reason`.
    """

    trials: tuple[EndedTrial, ...]
    ended_by: EndedBy
    reason: str | None
    seconds: float

    def count(self, state: EndState) -> int:
        """How many trials ended in this state."""
        return sum(trial.state == state for trial in self.trials)


# In the trial's process ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a search shares, kept once in Ray's object store.

    `profile` is the profile's file as bytes, `train` the section `train` of the sweep, `size` that
    of the base; with `keep_weights` a finished job leaves its weights with the queue.
    """

    targets: tuple[TargetModule, ...]
    profile: bytes | None
    train: Mapping[str, Any]
    epochs: int
    metric: str
    size: BaseSize | None = None
    keep_weights: bool = False


def job_name(number: int) -> str:
    """The id that the job of an Optuna trial asks the queue for; the driver cancels by it."""
    return f"trial-{number:05d}"


def run_trial(config: Mapping[str, Any], *, queue: Any, context: TrialContext) -> None:
    """Tune's function: hand the plan of one choice to the resident workers and report its epochs.

    `config` is ``{"choice": dict, "number": int, "seed": int}``. The last epoch is reported when
    the job is done, so that a trial with all its epochs is one that the worker has finished.

    Raises:
        JobError: the job failed, with the worker's own error in one line.
    """
    from trainables.resident import events_of

    choice = parse_choice(config["choice"])
    profile = Profile.from_bytes(context.profile, "profile") if context.profile else None
    plan = make_plan(choice, context.targets, profile, context.size)
    job_id = ray.get(
        queue.submit.remote(
            {
                "kind": "trial",
                "job_id": job_name(config["number"]),
                "choice": choice.as_dict(),
                "plan": plan.to_bytes(),
                "learning_rate": choice.learning_rate,
                "seed": config["seed"],
                "train": dict(context.train),
                "epochs": context.epochs,
                "keep_weights": context.keep_weights,
            }
        )
    )
    last: dict[str, Any] = {}
    reported = 0
    for event in events_of(queue, job_id):
        if event["type"] == "epoch":
            epoch = int(event["epoch"])
            # A job whose worker died starts again at its first epoch.
            if epoch <= reported:
                continue
            if context.metric not in event["metrics"]:
                raise JobError(
                    f"search.metric: the job reports {', '.join(sorted(event['metrics']))} and no "
                    f"{context.metric}; use one of these"
                )
            row = {
                **event["metrics"],
                "trainable_params": plan.trainable_params,
                "epoch": epoch,
                "epochs_done": epoch,
            }
            if epoch < context.epochs:
                tune.report(row)
                reported = epoch
            else:
                last = row
        elif event["type"] == "done":
            if not last:
                raise JobError(
                    f"{job_id}: ended after epoch {reported} of {context.epochs}; "
                    "look for its worker's log"
                )
            extra = {k: event["result"][k] for k in ("head_params",) if k in event["result"]}
            tune.report({**last, **extra})
            return
        elif event["type"] == "failed":
            raise JobError(_one_line(event["error"]))
        elif event["type"] == "cancelled":
            return  # the driver has ended this trial; an error would only be noise


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "failed without an error"


# On the driver ------------------------------------------------------------------------------------


class StagedAsha(AsyncHyperBandScheduler):  # type: ignore[misc]
    """Asynchronous successive halving that lets a plan of several stages reach its last one.

    Stage i of S trains steps [floor(i N / S), floor((i + 1) N / S)) of a trial's N, so after epoch
    e of E the last stage has begun to train where e S > (S - 1) E. Before that a result is not
    compared: all it would say of the plan is that part of it does not train yet.

    Args:
        stages: how many stages the plan of a Tune trial has, by the trial's id.
        epochs: epochs of a full trial.
        grace_epochs: no trial is stopped before it has done so many.
        reduction_factor: one in so many trials goes on from one rung to the next.
        metric: the reported metric; `mode` says whether ``max`` or ``min`` is better.
    """

    def __init__(
        self,
        *,
        stages: Callable[[str], int],
        epochs: int,
        grace_epochs: int,
        reduction_factor: float,
        metric: str,
        mode: str,
    ) -> None:
        grace = min(grace_epochs, epochs)
        super().__init__(
            time_attr="epoch",
            metric=metric,
            mode=mode,
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._stages = stages
        self._epochs = epochs
        count = int(math.log(epochs / grace) / math.log(reduction_factor)) + 1
        self._rung_epochs = {math.ceil(grace * reduction_factor**k) for k in range(count)}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """STOP a trial that falls behind the others at a rung, else CONTINUE."""
        epoch = int(result["epoch"])
        if epoch >= self._epochs:
            return str(TrialScheduler.CONTINUE)  # the function returns by itself
        if trial.config.get("repeat", 0):
            return str(TrialScheduler.CONTINUE)  # all repetitions count, not the lucky ones alone
        stages = self._stages(trial.trial_id)
        if stages == 1 or (self._in_last_stage(epoch, stages) and epoch in self._rung_epochs):
            return str(super().on_trial_result(tune_controller, trial, result))
        if self._in_last_stage(epoch, stages) and self._behind_last_rung(trial, result):
            return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def _in_last_stage(self, epoch: int, stages: int) -> bool:
        return epoch * stages > (stages - 1) * self._epochs

    def _behind_last_rung(self, trial: Trial, result: Mapping[str, Any]) -> bool:
        """Whether a result is below what let others pass the last rung of no more epochs.

        Ray's rungs take the first result that reaches them; one that was held back until its last
        stage is only compared, as it must not raise the bar of a rung of fewer epochs.
        """
        bracket = self._trial_info[trial.trial_id]
        for milestone, recorded in bracket._rungs:  # from the last to the first
            if milestone <= result["epoch"]:
                cutoff = bracket.cutoff(recorded)
                value = self._metric_op * result[self._metric]
                return cutoff is not None and bool(value < cutoff)
        return False

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing: a last result must not enter a rung of fewer epochs."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`, which ranksweep does not use.
        return {}


class DriverCallback(tune.Callback):  # type: ignore[misc]
    """Sees every Tune trial start, report and end: cancels its job and tells the observer.

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
            self._tell("trial_started", found.number, found.choice, found.plan)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tell the observer of an epoch."""
        if self._searcher.open_trial(trial.trial_id) is None:
            return  # it was cut off and has not heard of it yet
        metrics = {k: v for k, v in result.items() if k not in _TUNE_KEYS}
        self._metrics[trial.trial_id] = metrics
        self._tell("trial_epoch", trial.config["number"], int(result["epoch"]), metrics)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial has returned or was stopped by the scheduler."""
        self._over(trial)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial has failed."""
        self._over(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Find the trials that Tune has ended without a word."""
        self._meet(trials)
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

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its arguments for `Tuner.restore`, which ranksweep does not use.
        return {}

    def cut_off_all(self, reason: str) -> None:
        """End every trial that is still open."""
        for trial_id in self._searcher.open_ids:
            self.cut_off(trial_id, reason)

    def cut_off(self, trial_id: str, reason: str) -> None:
        """End one trial from outside: its job, its Optuna trial, and a word to the observer."""
        found = self._searcher.open_trial(trial_id)
        if found is None:
            return
        self._cancel(found.number)
        ended = self._searcher.cancel(trial_id, reason)
        if ended is not None:
            self._tell_end(trial_id, ended)

    def settle(self) -> None:
        """After Tune's loop: cancel again what a function may have submitted since then."""
        for ended in self._searcher.ended:
            if ended.state == "cancelled":
                self._cancel(ended.number)
        if self._cancels:
            ray.wait(self._cancels, num_returns=len(self._cancels), timeout=10)
        for answer in self._cancels:
            try:
                ray.get(answer, timeout=0)
            except Exception as error:  # whatever: the queue may be gone, or never knew the job
                logger.debug("a job could not be cancelled: %s", _one_line(str(error)))
        self._cancels.clear()

    def _meet(self, trials: list[Trial]) -> None:
        # Tune appends to its list, and a step must not cost more for the trials that are over.
        self._trials.update({each.trial_id: each for each in trials[len(self._trials) :]})

    def _over(self, trial: Trial) -> None:
        self._just_over.append(trial)
        ended = self._searcher.ended_trial(trial.trial_id)
        if ended is None:
            return
        if ended.state != "complete":
            self._cancel(ended.number)
        self._tell_end(trial.trial_id, ended)

    def _tell_end(self, trial_id: str, ended: EndedTrial) -> None:
        metrics = self._metrics.pop(trial_id, {})
        if trial_id in self._started:  # Tune may come to the end of one that was cut off
            self._started.discard(trial_id)
            self._tell("trial_ended", ended.number, ended.state, metrics, ended.reason)

    def _cancel(self, number: int) -> None:
        self._cancels.append(self._queue.cancel.remote(job_name(number)))

    def _tell(self, what: str, *arguments: Any) -> None:
        if self._observer is None:
            return
        try:
            getattr(self._observer, what)(*arguments)
        except Exception as error:  # a tracking server that is away must not end the search
            logger.warning(
                "%s: the observer failed (%s); the search goes on", what, _one_line(str(error))
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
        return _one_line(str(getattr(error, "cause", None) or error))


class _NoProgress(TrialProgressCallback):  # type: ignore[misc]
    """Takes the place of the one that Tune would print a line per trial with, whatever is set."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Nothing."""

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """Nothing."""

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """Nothing."""


class _StopAll(tune.Stopper):  # type: ignore[misc]
    """Ends the whole search once the callback has a reason to."""

    def __init__(self, callback: DriverCallback) -> None:
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end the search."""
        return self._callback.stop_reason is not None


def tune_search(
    *,
    searcher: StudySearcher,
    queue: Any,
    targets: tuple[TargetModule, ...],
    profile: Profile | None,
    train: Mapping[str, Any],
    epochs: int,
    scheduler: Mapping[str, Any] | None,
    metric: str,
    mode: str,
    max_concurrent_trials: int,
    time_budget: float | None,
    storage_path: Path | str,
    name: str,
    observer: Observer | None = None,
    callbacks: Sequence[tune.Callback] = (),
    should_stop: Callable[[], str | None] = lambda: None,
    reuse_actors: bool = True,
    size: BaseSize | None = None,
    keep_weights: bool = False,
    interrupts: Interrupts | None = None,
) -> TuneOutcome:
    """Run trials until the searcher has no more or the time budget is spent.

    Args:
        searcher: hands out the choices and keeps the study.
        queue: handle of the `JobQueue` actor of the resident workers.
        train: the section `train` of the sweep, as it goes into each job.
        scheduler: ``{"name": "asha", "grace_epochs": 1, "reduction_factor": 3}``; None or the name
            ``none`` lets every trial train to its end.
        max_concurrent_trials: what the groups can hold plus one, or the sampler proposes blind.
        time_budget: seconds; trials that still run then are cancelled.
        storage_path: folder that Tune writes to, as `storage_path/name`.
        should_stop: asked many times a second; a reason ends the search, as when the workers are
            gone for good. Trials that still run then are cancelled.
        reuse_actors: let one process serve trial after trial.
        size: the base's, which some plans depend on.
        keep_weights: let each finished job leave its weights with the queue.
        interrupts: who hears Ctrl-C during the launch; without it Ctrl-C is Python's own.

    Whatever ends the search, no trial of the study is left running and no job of a trial that has
    ended goes on.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
        ConfigError: an unknown scheduler.
    """
    interrupts = interrupts or Interrupts()
    callback = DriverCallback(searcher, queue, observer, should_stop, interrupts)
    shared = profile.to_bytes() if profile else None
    context = TrialContext(targets, shared, dict(train), epochs, metric, size, keep_weights)
    function = tune.with_parameters(run_trial, queue=queue, context=context)
    tuner = tune.Tuner(
        tune.with_resources(function, light_resources()),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_make_scheduler(scheduler, searcher, epochs, metric, mode),
            num_samples=-1,
            max_concurrent_trials=max_concurrent_trials,
            time_budget_s=time_budget,
            reuse_actors=reuse_actors,
            trial_name_creator=_name_of,
            trial_dirname_creator=_name_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(Path(storage_path).absolute()),
            verbose=0,
            stop=_StopAll(callback),
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[callback, _NoProgress(), *callbacks],
        ),
    )
    started = time.monotonic()
    try:
        with interrupts.deferred(), _quiet_tune(), _signal_kept():
            tuner.fit()
    except TuneError as error:  # it holds the traceback of what its loop has met, as text
        last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        said = last.removeprefix(f"{JobError.__module__}.{JobError.__name__}: ")
        raise JobError(f"the search ended: {said}") from error
    finally:
        callback.cut_off_all("interrupted" if interrupts.heard else "the search ended")
        callback.settle()
    if interrupts.heard:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    ended_by: EndedBy = "trials"
    if callback.stop_reason is not None:
        ended_by = "stopped"
    elif any(trial.state == "cancelled" for trial in searcher.ended):
        ended_by = "time_budget"
    elif searcher.handed < searcher.wanted:
        ended_by = "shortfall" if searcher.shortfall else "time_budget"
    reason = callback.stop_reason or searcher.shortfall
    return TuneOutcome(searcher.ended, ended_by, reason, seconds)


def _make_scheduler(
    settings: Mapping[str, Any] | None,
    searcher: StudySearcher,
    epochs: int,
    metric: str,
    mode: str,
) -> TrialScheduler | None:
    name = settings.get("name", "asha") if settings else "none"
    if settings is None or name == "none":
        return None
    if name != "asha":
        raise ConfigError(
            f"search.scheduler.name: {name!r} is not a scheduler; use 'asha' or 'none'"
        )
    return StagedAsha(
        stages=searcher.stages,
        epochs=epochs,
        grace_epochs=int(settings.get("grace_epochs", 1)),
        reduction_factor=float(settings.get("reduction_factor", 3)),
        metric=metric,
        mode=mode,
    )


def light_resources() -> tune.PlacementGroupFactory:
    """What a light trial asks for: a place on the driver's node, and no CPU of it.

    On a node that is lost it would fail with it, while its job could go on elsewhere; and the
    workers may have taken every CPU there is.
    """
    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    return tune.PlacementGroupFactory(
        [{f"node:{address}": TRIAL_SHARE}], bundle_label_selector=[{"ray.io/node-id": here}]
    )


def _name_of(trial: Trial) -> str:
    return job_name(trial.config["number"])


_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard file per trial
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the observer says them, in one line
    "TUNE_WARN_THRESHOLD_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # the study is what a sweep resumes from
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the launch hears Ctrl-C itself
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a cancelled trial has none to report
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a table whatever the verbosity
}


#: Loggers that tell at length of failed trials, of interrupts and of the files we do without.
_TALKERS = (
    "ray.tune.tune",
    "ray.tune.execution.tune_controller",
    "ray.tune.analysis.experiment_analysis",
)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from writing loggers' files and from telling what the observer tells."""
    before = {key: os.environ.get(key) for key in _QUIET}
    os.environ.update(_QUIET)
    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _signal_kept() -> Iterator[None]:
    """Put back the signal handler that Tune replaces and leaves behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGUSR1)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
