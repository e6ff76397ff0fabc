"""One launch of a sweep, top to bottom: profile if not cached, search, log, confirm."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import yaml

from search.config.database import check_database
from search.config.sweep import SweepConfig
from search.interrupts import Interrupts
from search.launch.prepare import SweepInputs, dtype_name, prepare
from search.launch.profile_stage import ProfileStage
from search.launch.ray_environment import set_ray_environment
from search.launch.result import LaunchResult
from search.launch.resume import check_name
from search.launch.sweep_lock import alone
from search.paths import SweepPaths, private_files
from search.progress import Progress
from search.redaction import redacted
from search.tracking.facts import State
from search.tracking.mlflow import absolute_uri
from search.tracking.tracker import Tracker
from spaces.errors import RanksweepError, TrackingError

if TYPE_CHECKING:
    from trainables.resident.groups import ResidentWorkers

logger = logging.getLogger(__name__)


def launch(
    config: SweepConfig, *, view: Progress, resume: bool = False, profile_only: bool = False
) -> LaunchResult:
    """Run a sweep to its end; with `profile_only` compute its profile and stop there.

    Raises a UsageError before anything is started where the sweep cannot be run as written, and
    KeyboardInterrupt on Ctrl-C, with what is done kept for `resume`.
    """
    paths = SweepPaths(name=config.name).absolute()
    if not profile_only:
        check_name(config, paths, resume)
        if config.search.study is not None:
            check_database(config.search.study)
    set_ray_environment(config.cluster.address)
    started = time.monotonic()
    prepared = prepare(config)
    tracker = Tracker(config.tracking.uri, config.tracking.experiment)
    stage = ProfileStage(config, prepared, paths, view)
    result = LaunchResult(
        name=config.name,
        profile_key=prepared.key,
        profile_cached=profile_only and stage.is_cached(),
        tracking_uri=redacted(absolute_uri(config.tracking.uri)),
    )
    if result.profile_cached:
        return result
    # Not at the top: they import Ray, which reads at import what was set above.
    from search.launch.ray_cluster import ray_cluster
    from search.launch.search_stage import SearchStage

    with alone(paths), _log_file(paths, view), Interrupts() as interrupts, stage:
        result.profile_cached = stage.profile is not None
        if profile_only and result.profile_cached:
            return result
        view.message(f"head: {prepared.head.about}")
        with ray_cluster(config, interrupts):
            if not profile_only:
                result.sweep_run_id = _open_sweep(config, prepared, tracker, paths, resume)
            result.seconds["prepare"] = time.monotonic() - started
            with (
                _told_how_it_ends(tracker, result, view, interrupts),
                _resident_workers(config, prepared, paths, view, interrupts) as workers,
            ):
                profile = stage.obtained(workers, tracker, result.sweep_run_id)
                if stage.seconds is not None:
                    result.seconds["profile"] = stage.seconds
                    result.profile_kept_in = stage.kept_in
                if not profile_only:
                    search = SearchStage(config, prepared, paths, tracker, view, result, interrupts)
                    search.search(profile, workers)
                    search.confirm(profile, workers)
    return result


# --- the sweep's folder and run ------------------------------------------------------------------


def _open_sweep(
    config: SweepConfig, prepared: SweepInputs, tracker: Tracker, paths: SweepPaths, resume: bool
) -> str:
    run_id = tracker.find_sweep(config.name) if resume else None
    if run_id is not None:
        tracker.resume_sweep(run_id)
    else:
        run_id = tracker.start_sweep(
            config.name,
            config.resolved(),
            {
                "task": config.task.name,
                "task_fingerprint": prepared.task.fingerprint,
                "base": prepared.base_fingerprint,
                "base_uri": prepared.base_uri,
                "metric": config.search.metric,
                "mode": config.search.mode,
                "profile_key": prepared.key,
                **borrowed_from(prepared),
            },
        )
    with private_files():
        paths.sweep_file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    return run_id


def borrowed_from(prepared: SweepInputs) -> dict[str, str]:
    """Tags that say of which task and base a profile is that is not the sweep's own."""
    if prepared.borrowed is None:
        return {}
    return {f"profile_of_{name}": value for name, value in prepared.profile_of.items()}


@contextmanager
def _told_how_it_ends(
    tracker: Tracker, result: LaunchResult, view: Progress, interrupts: Interrupts
) -> Iterator[None]:
    """Close the sweep's run with the state in which what is done meanwhile has ended."""
    state: State = "failed"
    reason = None
    try:
        yield
        state = "complete"
    except KeyboardInterrupt:
        state, reason = "interrupted", "Ctrl-C"
        view.message("interrupted; launch with --resume goes on with this sweep")
        raise
    except RanksweepError as error:
        reason = str(error)
        raise
    finally:
        with interrupts.deferred():
            _close_sweep(tracker, result, state, reason)


def _close_sweep(tracker: Tracker, result: LaunchResult, state: State, error: str | None) -> None:
    if result.sweep_run_id is None:
        return
    try:
        tracker.close_interrupted(result.sweep_run_id)
        tracker.end(
            result.sweep_run_id,
            state,
            metrics={f"seconds.{stage}": spent for stage, spent in result.seconds.items()},
            tags={"states": result.states, "ended_by": result.ended_by},
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
        dtype=dtype_name(config),
        deepspeed=config.deepspeed,
        settings=GroupSettings(
            groups=config.cluster.groups,
            workers_per_group=config.cluster.workers_per_group,
            resources_per_worker=config.cluster.resources_per_worker,
            max_failures=config.cluster.max_failures,
        ),
        storage_path=str(paths.tune),
        on_notice=view.message,
        hurried=lambda: interrupts.hurried,
    )
