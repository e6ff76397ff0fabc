"""One launch of a sweep, top to bottom: profile if not cached, search, log, confirm."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from search.config import SweepConfig
from search.confirm import confirm_best
from search.first_choices import first_choices
from search.interrupts import Interrupts
from search.journal import Journal
from search.kept_weights import KeptWeights
from search.live import View
from search.observer import SweepObserver, end_what_was_left_open
from search.paths import SweepPaths
from search.prepare import Prepared, dtype_name, fewer_trials, prepare
from search.profile_stage import ProfileStage
from search.replay import Replay
from search.sweep_lock import alone
from search.sweep_name import SEARCH_MAY_CHANGE, check_name
from search.tracking import Tracker, absolute_uri
from spaces.choice import Choice
from spaces.errors import ConfigError, JobError, RanksweepError, TrackingError
from spaces.methods import make_plan, parse_choice
from spaces.profile import Profile
from trainables.private import private_files, redacted

if TYPE_CHECKING:
    import optuna

    from search.searcher import StudySearcher
    from search.shared_study import SharedStudy
    from search.warm_start import Earlier
    from trainables.resident import ResidentWorkers

logger = logging.getLogger(__name__)


@dataclass
class LaunchResult:
    """What a launch did: seconds per stage, and the best trial of each method, best first."""

    name: str
    profile_key: str
    profile_cached: bool
    tracking_uri: str
    profile_kept_in: str | None = None
    """File of a profile that the store did not take."""
    sweep_run_id: str | None = None
    states: dict[str, int] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)
    unranked: list[str] = field(default_factory=list)
    """Methods and arms of which no trial ran to its end."""
    confirmation: list[dict[str, Any]] | None = None
    ended_by: str | None = None
    reason: str | None = None
    """Why the search ended before all trials were out."""
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)


def launch(
    config: SweepConfig, *, view: View, resume: bool = False, profile_only: bool = False
) -> LaunchResult:
    """Run a sweep to its end; with `profile_only` compute its profile and stop there.

    Raises a UsageError before anything is started where the sweep cannot be run as written, and
    KeyboardInterrupt on Ctrl-C, with what is done kept for `resume`.
    """
    paths = SweepPaths(name=config.name).absolute()
    if not profile_only:
        check_name(config, paths, resume)
        if config.search.study is not None:
            from search.study import check_database

            check_database(config.search.study)
    started = time.monotonic()
    prepared = prepare(config)
    result = LaunchResult(
        name=config.name,
        profile_key=prepared.key,
        profile_cached=False,
        tracking_uri=redacted(absolute_uri(config.tracking.uri)),
    )
    tracker = Tracker(config.tracking.uri, config.tracking.experiment)
    stage = ProfileStage(config, prepared, paths, view)
    if profile_only and stage.is_cached():
        result.profile_cached = True
        return result
    with alone(paths), _log_file(paths, view), Interrupts() as interrupts, stage:
        result.profile_cached = stage.profile is not None
        if profile_only and result.profile_cached:
            return result
        with _ray(config, interrupts):
            if not profile_only:
                result.sweep_run_id = _open_sweep(config, prepared, tracker, paths, resume)
            result.seconds["prepare"] = time.monotonic() - started
            end: tuple[str, str | None] = ("failed", None)
            job = _Launch(config, prepared, paths, tracker, view, result, interrupts)
            try:
                with _resident_workers(config, prepared, paths, view, interrupts) as workers:
                    profile = stage.obtained(workers, tracker, result.sweep_run_id)
                    if stage.seconds is not None:
                        result.seconds["profile"] = stage.seconds
                        result.profile_kept_in = stage.kept_in
                    if not profile_only:
                        job.search(profile, workers)
                        job.confirm(profile, workers)
                end = ("complete", None)
            except KeyboardInterrupt:
                end = ("interrupted", "Ctrl-C")
                view.message("interrupted; launch with --resume goes on with this sweep")
                raise
            except RanksweepError as error:
                end = ("failed", str(error))
                raise
            finally:
                with interrupts.deferred():
                    _close_sweep(tracker, result, *end)
    return result


# --- the sweep's folder and run ------------------------------------------------------------------


def _open_sweep(
    config: SweepConfig, prepared: Prepared, tracker: Tracker, paths: SweepPaths, resume: bool
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
                **_borrowed_from(prepared),
            },
        )
    with private_files():
        paths.sweep_file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    return run_id


def _borrowed_from(prepared: Prepared) -> dict[str, str]:
    """Tags that say of which task and base a profile is that is not the sweep's own."""
    if prepared.borrowed is None:
        return {}
    return {f"profile_of_{name}": value for name, value in prepared.profile_of.items()}


def _close_sweep(tracker: Tracker, result: LaunchResult, state: Any, error: str | None) -> None:
    if result.sweep_run_id is None:
        return
    try:
        tracker.close_interrupted(result.sweep_run_id)
        tracker.finish_sweep(
            result.sweep_run_id,
            state,
            metrics={f"seconds.{stage}": spent for stage, spent in result.seconds.items()},
            tags={"states": result.states, "ended_by": result.ended_by},
            error=error,
        )
    except TrackingError as gone:
        logger.warning("the sweep's run could not be closed: %s", gone)


@contextlib.contextmanager
def _log_file(paths: SweepPaths, view: View) -> Iterator[None]:
    """Keep what is logged and said during the launch in the sweep's folder."""
    with private_files():
        handler = logging.FileHandler(paths.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    view.listener = lambda text: handler.handle(
        logging.LogRecord("ranksweep", logging.INFO, __file__, 0, text, None, None)
    )
    try:
        yield
    finally:
        view.listener = None
        root.removeHandler(handler)
        handler.close()


# --- Ray and the resident workers ----------------------------------------------------------------


@contextlib.contextmanager
def _ray(config: SweepConfig, interrupts: Interrupts) -> Iterator[None]:
    """A Ray cluster for the launch: one of its own on this machine, or the one that is named."""
    if config.cluster.address == "local":
        # Despite its name it is read on Linux too, at import: Ray then listens on loopback alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    _check_address(config.cluster.address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.cluster.address == "local":
        # one CPU more than there are, for the light trials; they only wait
        cpus = (os.cpu_count() or 1) + 1
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        options |= {"address": config.cluster.address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cluster.address: no Ray cluster answers at {config.cluster.address} ({reason}); "
            "start one with `ray start --head` or `ray up cluster.yaml`, or use local; set "
            "RAY_AUTH_MODE=token where the cluster asks for one"
        ) from error
    try:
        interrupts.listen()
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself goes on trying for minutes where nobody listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address: nobody listens at {address} ({error.strerror or error}); start Ray "
            "there with `ray start --head` or `ray up cluster.yaml`, or use local"
        ) from None


def _resident_workers(
    config: SweepConfig,
    prepared: Prepared,
    paths: SweepPaths,
    view: View,
    interrupts: Interrupts,
) -> ResidentWorkers:
    from trainables.resident import GroupSettings, ResidentWorkers

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


# --- the stages ----------------------------------------------------------------------------------


@dataclass
class _Launch:
    """The three stages of a launch, and what they share."""

    config: SweepConfig
    prepared: Prepared
    paths: SweepPaths
    tracker: Tracker
    view: View
    result: LaunchResult
    interrupts: Interrupts

    def search(self, profile: Profile, workers: ResidentWorkers) -> None:
        """All trials of the sweep, through Ray Tune and Optuna."""
        from search.study import best_of_each_method, states_of
        from search.tuning import tune_search

        config, search = self.config, self.config.search
        started = time.monotonic()
        study = self._study()
        shared = self._shared(study)
        searcher = self._searcher(study, shared, profile, workers, started)
        self._say_what_is_left(searcher)
        self.result.states = states_of(study)
        self.result.best = best_of_each_method(study, search.mode)
        try:
            with self._recorded(study, shared, searcher, profile, workers) as observer:
                outcome = tune_search(
                    searcher=searcher,
                    queue=workers.queue,
                    targets=self.prepared.targets,
                    profile=profile,
                    train=config.train.model_dump(mode="json"),
                    epochs=config.train.epochs,
                    scheduler=search.scheduler.model_dump(mode="json"),
                    metric=search.metric,
                    mode=search.mode,
                    max_concurrent_trials=config.cluster.groups + 1,
                    time_budget=search.time_budget,
                    storage_path=self.paths.tune,
                    name="search",
                    observer=observer,
                    should_stop=workers.lost,
                    size=self.prepared.size,
                    keep_weights=config.tracking.keep_weights != "none",
                    interrupts=self.interrupts,
                )
                self.result.ended_by = outcome.ended_by
                if outcome.ended_by == "stopped":
                    raise JobError(f"no workers are left: {outcome.reason}; go on with --resume")
                if outcome.reason:
                    self.result.reason = outcome.reason
                    self.view.message(
                        f"the search ended after {searcher.handed} of {searcher.wanted} trials: "
                        f"{outcome.reason}"
                    )
                elif outcome.ended_by == "time_budget":
                    self.result.reason = f"search.time_budget: {search.time_budget:g} s are spent"
                    self.view.message(self.result.reason)
        finally:
            self.result.seconds["search"] = time.monotonic() - started

    def _searcher(
        self,
        study: optuna.Study,
        shared: SharedStudy | None,
        profile: Profile,
        workers: ResidentWorkers,
        started: float,
    ) -> StudySearcher:
        """Who proposes: first what was cut off, the papers' defaults and what others have found."""
        from search.searcher import StudySearcher
        from search.study import choice_text, interrupted

        prepared, search = self.prepared, self.config.search

        def waits() -> bool:
            in_time = search.time_budget is None or time.monotonic() < started + search.time_budget
            return in_time and not self.interrupts.heard and workers.lost() is None

        again = interrupted(study, shared.left_behind(at_start=True) if shared else None)
        first = first_choices(prepared, profile, search.arms) if search.warm_start else []
        earlier = self._earlier(study, profile) if search.warm_start else []
        return StudySearcher(
            study,
            prepared.space,
            targets=prepared.targets,
            profile=profile,
            metric=search.metric,
            objectives=search.objectives,
            mode=search.mode,
            epochs=self.config.train.epochs,
            trials=search.trials,
            max_params=search.max_params,
            allocation=search.allocation,
            enqueue=[*again, *first, *(each.choice for each in earlier)],
            origins={choice_text(each.choice): each.run_id for each in earlier},
            size=prepared.size,
            arms=search.arms,
            seed=self.config.train.seed,
            repeats=(search.repeats.top, search.repeats.seeds) if search.repeats else None,
            shared=shared,
            waits=waits,
            say=self.view.message,
        )

    def _say_what_is_left(self, searcher: StudySearcher) -> None:
        search = self.config.search
        arms = [arm.name for arm in self.prepared.space.arms(search.arms)]
        done = searcher.handed
        left = max(0, search.trials - done)
        kept = f" ({done} of {search.trials} are done)" if done else ""
        trials = f"{left} trial{'' if left == 1 else 's'}"
        self.view.stage("search", f"{trials}{kept} over {', '.join(arms)}")
        if not done and search.trials < len(arms):
            self.view.message(fewer_trials(self.config, len(arms)))

    @contextlib.contextmanager
    def _recorded(
        self,
        study: optuna.Study,
        shared: SharedStudy | None,
        searcher: StudySearcher,
        profile: Profile,
        workers: ResidentWorkers,
    ) -> Iterator[SweepObserver]:
        """While open, trials go to the view and the journal; then to MLflow and the result."""
        from search.study import (
            WorthKeeping,
            best_of_each_method,
            run_ids,
            settle,
            states_of,
        )
        from search.tuning import job_name

        config, prepared, mode = self.config, self.prepared, self.config.search.mode
        sweep_run_id = self.result.sweep_run_id
        assert sweep_run_id is not None
        kept = KeptWeights(
            self.paths,
            config.tracking.keep_weights,
            collect=lambda number: workers.collect(job_name(number)),
            best=WorthKeeping(study, mode),
        )
        journal = Journal(self.paths.journal)
        end_what_was_left_open(journal, study, config.search.objectives[0])
        replay = Replay(
            journal,
            self.tracker,
            sweep_run_id,
            plan_of=lambda choice: make_plan(
                parse_choice(choice), prepared.targets, profile, prepared.size
            ),
            say=self.view.message,
            on_run=searcher.set_run_id,
        )
        observer = SweepObserver(
            config, self.result.best, journal, replay, self.view, searcher, kept
        )
        try:
            yield observer
        finally:
            if shared is not None:
                shared.close()
            if observer.close(hurried=lambda: self.interrupts.hurried):
                self.tracker.patience = 0.0  # MLflow is away: what follows must not wait for it too
            runs = journal.run_ids(sweep_run_id)
            journal.close()
            if shared is None:
                settle(study)  # a trial is open still where the database's answer was lost
            runs |= run_ids(study)
            problem = kept.log(self.tracker, lambda: runs)
            if problem is not None:
                self.view.message(
                    f"{problem}; weights are left in {self.paths.weights}, for --resume"
                )
            self.result.states = states_of(study)
            self.result.best = best_of_each_method(study, mode)
            ranked = {row["arm"] for row in self.result.best}
            arms = self.prepared.space.arms(config.search.arms)
            self.result.unranked = [arm.name for arm in arms if arm.name not in ranked]
            for row in self.result.best:
                row["run_id"] = row["run_id"] or runs.get(row["number"])

    def confirm(self, profile: Profile, workers: ResidentWorkers) -> None:
        """Retrain the best of each method with more seeds and measure them on test."""
        from search.shared_study import closes
        from search.study import best_of_each_method

        config, result = self.config, self.result
        if config.confirm is None or not result.best or result.ended_by != "trials":
            return
        started, study = time.monotonic(), self._study()
        if config.search.study is not None and not closes(study, self._driver):
            self.view.message("confirm: left to the launch that has ended the last trial")
            return
        chosen = best_of_each_method(study, config.search.mode, config.confirm.top)
        plans = [
            make_plan(
                parse_choice(row["choice"]), self.prepared.targets, profile, self.prepared.size
            )
            for row in chosen
        ]
        assert result.sweep_run_id is not None
        confirmed = confirm_best(
            chosen,
            config=config,
            plans=plans,
            workers=workers,
            tracker=self.tracker,
            sweep_run_id=result.sweep_run_id,
            view=self.view,
        )
        result.confirmation = [each.as_dict() for each in confirmed]
        result.seconds["confirm"] = time.monotonic() - started

    def _earlier(self, study: optuna.Study, profile: Profile) -> list[Earlier]:
        """What earlier sweeps have found, for a third of the trials at most."""
        from search.warm_start import earlier_choices, noted, told

        config, prepared = self.config, self.prepared
        find = partial(
            earlier_choices,
            config.tracking.uri,
            prepared.space,
            task_fingerprint=prepared.task.fingerprint,
            base_fingerprint=prepared.base_fingerprint,
            sweep_run_id=self.result.sweep_run_id,
            at_most=config.search.trials // 3,
        )
        limit, prepared = config.search.max_params, self.prepared

        def fits(choice: Choice) -> bool:
            plan = make_plan(choice, prepared.targets, profile, prepared.size)
            return limit is None or plan.trainable_params <= limit

        earlier = [each for each in noted(study, find) if fits(each.choice)]
        if earlier:
            self.view.message(told(earlier))
        return earlier

    @property
    def _driver(self) -> str:
        from search.shared_study import driver_of

        return driver_of(self.paths.sweep)

    def _shared(self, study: optuna.Study) -> SharedStudy | None:
        """This launch's part in a study that others may have too; None where it is its own."""
        from search.shared_study import SharedStudy, check_settings
        from search.study import GRACE_SECONDS

        if self.config.search.study is None:
            return None
        resolved = self.config.resolved()
        free = ("study", *SEARCH_MAY_CHANGE)
        check_settings(
            study,
            {
                "task": self.prepared.task.fingerprint,
                "base": self.prepared.base_fingerprint,
                "profile": self.prepared.key,
                "search": {k: v for k, v in resolved["search"].items() if k not in free},
                **{key: resolved[key] for key in ("space", "train", "deepspeed")},
            },
        )
        return SharedStudy(study, self._driver, GRACE_SECONDS)

    def _study(self) -> optuna.Study:
        from search.shared_study import own_seed
        from search.study import BEAT_SECONDS, open_study

        search = self.config.search
        shared = search.study is not None
        with private_files():
            return open_study(
                search.study or self.paths.study_uri,
                self.config.name,
                objectives=search.objectives,
                mode=search.mode,
                sampler=search.sampler,
                seed=own_seed(search.seed, self._driver) if shared else search.seed,
                beat_seconds=BEAT_SECONDS if shared else None,
                impatient=lambda: self.interrupts.heard,
            )
