"""The search itself: Ray Tune runs light trials that hand their plans to the resident workers.

A Tune trial trains nothing. It derives the plan, submits a job to the queue and passes the job's
epochs on to Tune, whose scheduler may stop it. A stopped function learns of that only at its next
report, so a callback on the driver cancels the job of every trial that Tune stops.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import TrialScheduler

from search.interrupts import Interrupts
from search.study.trial import EndedTrial, EndState
from search.tuning.asha import ArmAsha, EpochAsha, RowsAsha
from search.tuning.driver import DriverCallback, Observer
from search.tuning.rungs import Rungs
from search.tuning.searcher import StudySearcher
from search.tuning.trial import TrialContext, job_name, run_trial
from spaces.errors import ConfigError, JobError

#: Share of its node that a light trial asks for; Tune takes no zero.
TRIAL_SHARE = 0.0001
EndedBy = Literal["trials", "stop_when", "time_budget", "shortfall", "stopped"]


@dataclass(frozen=True)
class TuneOutcome:
    """What a search did: its trials of this run, by number, and why it ended.

    ``trials``: all were handed out; ``stop_when``: more are not worth their cost, as `reason` says;
    ``time_budget``: it was spent; ``shortfall``: nothing more could be asked, `reason` says why;
    ``stopped``: `should_stop` gave the `reason`.
    """

    trials: tuple[EndedTrial, ...]
    ended_by: EndedBy
    reason: str | None
    seconds: float

    def count(self, state: EndState) -> int:
        """How many trials ended in this state."""
        return sum(trial.state == state for trial in self.trials)


class _NoProgress(TrialProgressCallback):  # type: ignore[misc]
    """Takes the place of the one that Tune would print a line per trial with, whatever is set."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Nothing."""

    on_trial_error = on_trial_complete = on_trial_result


def tune_search(
    *,
    searcher: StudySearcher,
    queue: Any,
    scheduler: Mapping[str, Any] | None,
    max_concurrent_trials: int,
    time_budget: float | None,
    storage_path: Path | str,
    name: str,
    observer: Observer | None = None,
    callbacks: Sequence[tune.Callback] = (),
    should_stop: Callable[[], str | None] = lambda: None,
    reuse_actors: bool = True,
    keep_weights: bool = False,
    rows_seed: int = 0,
    interrupts: Interrupts | None = None,
) -> TuneOutcome:
    """Run trials until the searcher has no more or the time budget is spent.

    Args:
        searcher: hands out the choices, keeps the study and knows what each trial is.
        queue: handle of the `JobQueue` actor of the resident workers.
        scheduler: ``{"name": "asha", "grace_epochs": 1, "reduction_factor": 3}``; None or the name
            ``none`` lets every trial train to its end.
        max_concurrent_trials: what the groups can hold plus one, or the sampler proposes blind.
        time_budget: seconds; trials that still run then are cancelled.
        storage_path: folder that Tune writes to, as `storage_path/name`.
        should_stop: asked many times a second; a reason ends the search, as when the workers are
            gone for good. Trials that still run then are cancelled.
        reuse_actors: let one process serve trial after trial.
        keep_weights: let each finished job leave its weights with the queue.
        rows_seed: chooses the rows that cheap looks train on.
        interrupts: who hears Ctrl-C during the launch; without it Ctrl-C is Python's own.

    Whatever ends the search, no trial of the study is left running and no job of a trial that has
    ended goes on.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
        ConfigError: an unknown scheduler.
    """
    interrupts = interrupts or Interrupts()
    callback = DriverCallback(searcher, queue, observer, should_stop, interrupts)
    planner = searcher.proposals.planner
    context = TrialContext(
        planner.targets,
        planner.profile.to_bytes() if planner.profile else None,
        searcher.proposals.train,
        searcher.metric,
        planner.size,
        keep_weights,
        rows_seed,
    )
    function = tune.with_parameters(run_trial, queue=queue, context=context)
    tuner = tune.Tuner(
        tune.with_resources(function, light_resources()),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_make_scheduler(scheduler, searcher),
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
            stop=callback,
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
    elif searcher.handed < searcher.wanted and searcher.enough:
        ended_by = "stop_when"
    elif searcher.handed < searcher.wanted:
        ended_by = "shortfall" if searcher.shortfall else "time_budget"
    reason = callback.stop_reason or searcher.enough or searcher.shortfall
    return TuneOutcome(searcher.ended, ended_by, reason, seconds)


def _make_scheduler(
    settings: Mapping[str, Any] | None, searcher: StudySearcher
) -> TrialScheduler | None:
    name = settings.get("name", "asha") if settings else "none"
    if settings is None or name == "none":
        return None
    if name != "asha":
        raise ConfigError(
            f"search.scheduler.name: {name!r} is not a scheduler; use 'asha' or 'none'"
        )
    search, factor = searcher.proposals.search, float(settings.get("reduction_factor", 3))
    rungs = Rungs(search.objective, factor, pareto=len(search.objectives) > 1)
    asha: ArmAsha
    if search.fidelity is not None:
        asha = RowsAsha(search.metric, rungs, searcher.contender)
    else:
        asha = EpochAsha(
            search.metric,
            rungs,
            searcher.contender,
            epochs=searcher.proposals.train.epochs,
            grace_epochs=int(settings.get("grace_epochs", 1)),
            reduction_factor=factor,
        )
    asha.add_past(searcher.past_trials())
    return asha


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
