"""One launch of a sweep, top to bottom: profile if not cached, search, log, confirm."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import yaml

from search.config.database import check_database
from search.config.sweep import SweepConfig
from search.interrupts import EXIT_INTERRUPTED, Interrupts
from search.launch.begun import Begun, dtype_as_begun
from search.launch.closing import tracking_of
from search.launch.lm_eval import asked_tags, check_lm_eval
from search.launch.prepare import SweepInputs, prepare
from search.launch.profile_stage import ProfileStage
from search.launch.ray_environment import set_ray_environment
from search.launch.report import leave_report
from search.launch.result import LaunchResult, constant_answers
from search.launch.resume import as_begun, check_data, check_name
from search.launch.sweep_lock import alone
from search.launch.sweep_note import datasets_of, summary_metrics, sweep_note
from search.launch.task_summary import task_summary
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.queries.sweep_summary import summary_of
from search.redaction import redacted
from search.tracking.also.listeners import check_also
from search.tracking.facts import RunFacts, State, at_step, now_ms
from search.tracking.liveness import launched_here
from search.tracking.mlflow import absolute_uri
from search.tracking.system_metrics import check_system_metrics, system_metrics
from search.tracking.tracker import Tracker
from search.tracking.ui import sweep_view
from search.wording import classes_line, tokens_line
from spaces.errors import RanksweepError, TrackingError
from trainables.engine.section import said_of_division
from trainables.tasks.task import Task

if TYPE_CHECKING:
    from trainables.resident.activations import Activations
    from trainables.resident.groups import ResidentWorkers
    from trainables.resident.jobs import Steps

logger = logging.getLogger(__name__)
BY_SIGNAL = "Ctrl-C"


def launch(
    config: SweepConfig,
    *,
    view: Progress,
    resume: bool = False,
    profile_only: bool = False,
    scheduled_by: str | None = None,
    base_name: str | None = None,
    on_result: Callable[[LaunchResult], object] = lambda _result: None,
) -> LaunchResult:
    """Run a sweep to its end; with `profile_only` compute its profile and stop there.

    `scheduled_by` names the schedule that launches it, for its run in MLflow: then it goes on with
    what is there of the sweep, and begins it where there is nothing. `base_name` is what its base
    is a version of: those of one name compete for one champion. `on_result` hears what was
    done once there are trials, however the launch ends, while its log is still kept.
    Raises a UsageError before anything is started where the sweep cannot be run as written, and
    KeyboardInterrupt on Ctrl-C, with what is done kept for `resume`.
    """
    paths = SweepPaths(name=config.name).absolute()
    if scheduled_by is not None:
        # Who sends it to a cluster does not see what is there, and the name is the schedule's own.
        resume = paths.sweep_file.is_file()
    if resume:
        config = as_begun(config, paths)
    if not profile_only:
        check_name(config, paths, resume)
        check_also(config.tracking.also)
        if config.search.study is not None:
            check_database(config.search.study)
    set_ray_environment(config.cluster.address)
    started = time.monotonic()
    prepared = prepare(config, dtype_as_begun(config, paths) if resume else None)
    if not profile_only:
        check_data(config, paths, prepared, resume)
        check_lm_eval(config, load_all=True)
    if config.tracking.system_metrics:
        check_system_metrics()
    tracking = config.tracking
    tracker = Tracker(tracking.uri, tracking.experiment, tags=tracking.tags)
    stage = ProfileStage(config, prepared, paths, view)
    result = LaunchResult(
        name=config.name,
        profile_key=prepared.key,
        profile_cached=profile_only and stage.is_cached(),
        tracking_uri=redacted(absolute_uri(config.tracking.uri)),
        constant_answers=constant_answers(prepared.task),
    )
    if result.profile_cached:
        return result
    # Not at the top: they import Ray, which reads at import what was set above.
    from search.launch.ray_cluster import ray_cluster
    from search.launch.search_stage import SearchStage

    with alone(paths), _log_file(paths, view), Interrupts() as interrupts, stage:
        _tell_task(prepared.task, view)
        result.profile_cached = stage.profile is not None
        if profile_only and result.profile_cached:
            return result
        view.message(f"head: {prepared.head.about}")
        if prepared.precision.note is not None:
            view.message(prepared.precision.note)
        divided = said_of_division(config.deepspeed, config.cluster.workers_per_group)
        if divided is not None:
            view.message(divided)
        ray_is_gone = partial(_leave_without_ray, tracker, result, view, interrupts)
        with ray_cluster(config, interrupts, ray_is_gone):
            if not profile_only:
                tracked_before = tracking_of(paths)
                result.sweep_run_id = _open_sweep(config, prepared, tracker, paths, view, resume)
                result.experiment_id = tracker.experiment_id
                tracker.log(
                    result.sweep_run_id,
                    metrics=at_step(result.constant_metrics, 0),
                    tags={"scheduled_by": scheduled_by, "base_name": base_name},
                )
            result.seconds["prepare"] = time.monotonic() - started
            with (
                _told_how_it_ends(
                    config,
                    tracker,
                    result,
                    view,
                    interrupts,
                    on_result,
                    partial(
                        leave_report,
                        result,
                        paths,
                        tracker,
                        config.store,
                        view.message,
                        lambda: interrupts.hurried,
                    ),
                ),
                _machine_watched(config, result),
                _resident_workers(config, prepared, paths, view, interrupts) as workers,
            ):
                profile = stage.obtained(workers, tracker, result.sweep_run_id)
                if stage.seconds is not None:
                    result.seconds["profile"] = stage.seconds
                    result.profile_kept_in = stage.kept_in
                if not profile_only:
                    search = SearchStage(
                        config,
                        prepared,
                        paths,
                        tracker,
                        view,
                        result,
                        interrupts,
                        tracked_before,
                    )
                    search.search(profile, workers)
                    _describe(config, tracker, result)
                    search.confirm(profile, workers)
    return result


def _tell_task(task: Task, view: Progress) -> None:
    """Say what the task's classes are, and what a user should know of its rows."""
    if task.longest:
        view.message(f"tokens (median, 95 %, most): {tokens_line(task_summary(task))}")
    if task.labels:
        view.message(f"classes: {classes_line(task.class_counts())}")
    for note in task.notes:
        view.message(f"note: {note}")


# --- the sweep's folder and run ------------------------------------------------------------------


def _open_sweep(
    config: SweepConfig,
    prepared: SweepInputs,
    tracker: Tracker,
    paths: SweepPaths,
    view: Progress,
    resume: bool,
) -> str:
    """The sweep's run in MLflow: the one that carries its mark, else a new one."""
    begun = Begun.of(paths) if resume else None
    run = None
    if resume:
        run = tracker.find_sweep(config.name, None if begun is None else begun.mark)
    if begun is None:
        begun = Begun.by(prepared)
        if run is not None and run.token is not None:
            begun = replace(begun, mark=run.token)
    begun.write(paths)
    if run is not None:
        _say_if_other_data(run, prepared, view)
        tracker.resume_sweep(run.run_id)
        here = {**launched_here(paths), **asked_tags(config), "trials": config.search.trials}
        tracker.log(run.run_id, tags={**here, **_published(config, run)})
        run_id = run.run_id
    else:
        if resume:
            view.message(
                f"{redacted(tracker.uri)} has no run of this sweep; what is known of its trials is "
                "logged there into new runs"
            )
        run_id = tracker.start_sweep(
            config.name, config.resolved(), _tags(config, prepared, paths), begun.mark
        )
    ranks = any("rank" in space for space in config.search_space.domains.values())
    metric, mode = config.search.metric, config.search.mode
    tracker.share_view(run_id, sweep_view(config.name, metric, mode, ranks, now_ms()))
    tracker.log_datasets(run_id, datasets_of(config, prepared))
    tracker.log_task(run_id, {**task_summary(prepared.task), "notes": prepared.task.notes})
    with private_files():
        paths.sweep_file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    return run_id


def _tags(config: SweepConfig, prepared: SweepInputs, paths: SweepPaths) -> dict[str, str]:
    return {
        "task": config.task.name,
        "task_fingerprint": prepared.task.fingerprint,
        "data_fingerprint": prepared.task.data_fingerprint,
        "base": prepared.base_fingerprint,
        "base_uri": prepared.base_uri,
        "metric": config.search.metric,
        "mode": config.search.mode,
        "trials": str(config.search.trials),
        "profile_key": prepared.key,
        **borrowed_from(prepared),
        **launched_here(paths),
        **asked_tags(config),
        **_published(config),
    }


def _published(config: SweepConfig, run: RunFacts | None = None) -> dict[str, str]:
    """The tag of what a paper prints for the sweep; `null` where its run had one that is gone."""
    if config.published is not None:
        return {"published": config.published.as_tag()}
    return {} if run is None or run.published is None else {"published": "null"}


def _say_if_other_data(run: RunFacts, prepared: SweepInputs, view: Progress) -> None:
    """Of a sweep that an older ranksweep has begun MLflow alone says on what."""
    told = (run.task_fingerprint, run.base)
    if told != (prepared.task.fingerprint, prepared.base_fingerprint):
        view.message(
            "MLflow names the base or the rows of this sweep otherwise than they are now; if they "
            "were changed since, its trials cannot be compared: launch under another name"
        )


def borrowed_from(prepared: SweepInputs) -> dict[str, str]:
    """Tags that say of which task and base a profile is that is not the sweep's own."""
    if prepared.borrowed is None:
        return {}
    return {f"profile_of_{name}": value for name, value in prepared.profile_of.items()}


@contextmanager
def _told_how_it_ends(
    config: SweepConfig,
    tracker: Tracker,
    result: LaunchResult,
    view: Progress,
    interrupts: Interrupts,
    on_result: Callable[[LaunchResult], object],
    last: Callable[[], object],
) -> Iterator[None]:
    """Close the sweep's run with the state in which what is done meanwhile has ended; `last` is
    done then."""
    state: State = "failed"
    reason = None
    try:
        with interrupts.followed_by(partial(_last_words, tracker, result)):
            yield
        state = "complete"
    except KeyboardInterrupt:
        state, reason = "interrupted", BY_SIGNAL
        view.message(f"interrupted; {_goes_on(result)}")
        raise
    except RanksweepError as error:
        reason = str(error)
        raise
    finally:
        with interrupts.deferred():
            _close_sweep(config, tracker, result, state, reason)
            last()
            _describe(config, tracker, result)
            if result.states:
                on_result(result)


def _goes_on(result: LaunchResult) -> str:
    if result.sweep_run_id is None:
        return "start it again, and the profile goes on from its last checkpoint"
    return "launch with --resume goes on with this sweep"


def _last_words(tracker: Tracker, result: LaunchResult) -> None:
    """Close the sweep's run as soon as a signal is heard, before all else.

    To end what runs takes a while, and who sends the signal may kill what is left soon after: Ray's
    jobs have three seconds.
    """
    if result.sweep_run_id is not None:
        with suppress(TrackingError):
            tracker.impatient().end(result.sweep_run_id, "interrupted", error=BY_SIGNAL)


def _leave_without_ray(
    tracker: Tracker, result: LaunchResult, view: Progress, interrupts: Interrupts, died: str
) -> None:
    """End the process, which Ray would do itself a minute later: no call to it returns any more.

    What was done is in the study and the journal, on disk.
    """
    reason = f"the Ray of this launch has ended ({died})"
    if result.sweep_run_id is not None:
        with suppress(TrackingError):
            tracker.impatient().end(result.sweep_run_id, "interrupted", error=reason)
    view.message(f"{reason}; what is done is kept: {_goes_on(result)}")
    sys.stderr.write("\x1b[?25h" if sys.stderr.isatty() else "")  # a live view hides the cursor
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED if interrupts.heard else 1)


def _describe(config: SweepConfig, tracker: Tracker, result: LaunchResult) -> None:
    """Have MLflow's UI show what has come out so far, once there is something."""
    if result.sweep_run_id is None or not result.states:
        return
    try:
        report = tracker.files_in(result.sweep_run_id, "report")
        report += tracker.files_in(result.sweep_run_id, "report/figures")
        note = sweep_note(config, result, tracker.experiment_id, report)
        tracker.describe(result.sweep_run_id, note)
    except TrackingError as gone:
        logger.warning("the sweep's run could not be described: %s", gone)


@contextmanager
def _machine_watched(config: SweepConfig, result: LaunchResult) -> Iterator[None]:
    """While open, what this machine does goes to the sweep's run, where that was asked for."""
    if not config.tracking.system_metrics or result.sweep_run_id is None:
        yield
        return
    with system_metrics(absolute_uri(config.tracking.uri), result.sweep_run_id):
        yield


def _close_sweep(
    config: SweepConfig,
    tracker: Tracker,
    result: LaunchResult,
    state: State,
    error: str | None,
) -> None:
    if result.sweep_run_id is None:
        return
    try:
        tracker.close_interrupted(result.sweep_run_id)
        tracker.end(
            result.sweep_run_id,
            state,
            metrics={
                **{f"seconds.{stage}": spent for stage, spent in result.seconds.items()},
                **summary_metrics(config, result),
            },
            tags={
                "states": result.states,
                "ended_by": result.ended_by,
                "reason": result.reason,
                "summary": summary_of(tracker.children(result.sweep_run_id)).as_tag(),
            },
            error=error,
        )
    except TrackingError as gone:
        logger.warning("the sweep's run could not be closed: %s", gone)


@contextmanager
def _log_file(paths: SweepPaths, view: Progress) -> Iterator[None]:
    """Keep what is logged and said during the launch in the sweep's folder."""
    with private_files():
        handler = logging.FileHandler(paths.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    view.listener = lambda text: handler.handle(
        logging.LogRecord("ranksweep", logging.INFO, __file__, 0, text, None, None)
    )
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        view.listener = None
        handler.close()


def _resident_workers(
    config: SweepConfig,
    prepared: SweepInputs,
    paths: SweepPaths,
    view: Progress,
    interrupts: Interrupts,
) -> ResidentWorkers:
    from trainables.resident.groups import GroupSettings, ResidentWorkers

    return ResidentWorkers(
        base_uri=prepared.base_uri,
        base_fingerprint=prepared.base_fingerprint,
        task=prepared.task,
        dtype=prepared.precision.dtype,
        quantization=config.base_quantization,
        deepspeed=config.deepspeed,
        settings=GroupSettings(
            groups=config.cluster.groups,
            workers_per_group=config.cluster.workers_per_group,
            resources_per_worker=config.cluster.resources_per_worker,
            max_failures=config.cluster.max_failures,
            activations=_activations(config, prepared),
            accelerator_type=config.cluster.accelerator_type,
        ),
        storage_path=str(paths.tune),
        on_notice=view.message,
        on_steps=partial(_show_steps, view),
        hurried=lambda: interrupts.hurried,
    )


def _activations(config: SweepConfig, prepared: SweepInputs) -> Activations:
    """How workers keep activations; what they would hold is counted where a GPU may lack it."""
    from trainables.resident.activations import Activations

    setting, on_gpu = config.train.activation_checkpointing, config.cluster.on_gpu
    if setting != "auto" or not on_gpu:
        return Activations(setting)
    from search.launch.memory_plan import Planning  # which a launch on CPUs has no use for

    return Activations(setting, Planning(config, prepared, profiled=True).beside_base())


def _show_steps(view: Progress, job_id: str, steps: Steps) -> None:
    """Show how far a trial is; the profile's job tells of its steps itself."""
    from search.tuning.trial import trial_of_job

    trial = trial_of_job(job_id)
    if trial is not None:
        rate, seed = steps.learning_rate, trial.seed
        view.trial_steps(trial.number, steps.done, steps.total, rate, seed, trial.rows)
