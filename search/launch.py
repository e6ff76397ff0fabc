"""One launch of a sweep, top to bottom: profile if not cached, search, log, confirm."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import yaml

from search.config import SweepConfig
from search.confirm import confirm_best
from search.kept_weights import KeptWeights
from search.live import View
from search.paths import SweepPaths
from search.prepare import Prepared, dtype_name, prepare
from search.profile_stage import ProfileStage
from search.tracking import Tracker, absolute_uri
from spaces.choice import Choice
from spaces.errors import ConfigError, JobError, RanksweepError, TrackingError
from spaces.methods import METHODS, make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import Profile
from trainables.private import private_files, redacted

if TYPE_CHECKING:
    import optuna

    from search.searcher import EndState, StudySearcher
    from trainables.resident import ResidentWorkers

logger = logging.getLogger(__name__)

MAY_CHANGE_ON_RESUME = ("cluster", "confirm", "store", "tracking")
SEARCH_MAY_CHANGE = ("trials", "time_budget")
TRACKING_RETRY_S = 30.0  # between two tries to write to an MLflow that is away


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
    confirmation: list[dict[str, Any]] | None = None
    ended_by: str | None = None
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
        _check_name(config, paths, resume)
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
    with _alone(config, paths), _log_file(paths, view), stage:
        result.profile_cached = stage.profile is not None
        if profile_only and result.profile_cached:
            return result
        with _ray(config):
            if not profile_only:
                result.sweep_run_id = _open_sweep(config, prepared, tracker, paths, resume)
            result.seconds["prepare"] = time.monotonic() - started
            end: tuple[str, str | None] = ("failed", None)
            job = _Launch(config, prepared, paths, tracker, view, result)
            try:
                with _resident_workers(config, prepared, paths) as workers:
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
                _close_sweep(tracker, result, *end)
    return result


# --- the sweep's folder and run ------------------------------------------------------------------


def _check_name(config: SweepConfig, paths: SweepPaths, resume: bool) -> None:
    """A sweep's name is used once; `resume` goes on with it where it asks for the same trials."""
    if not paths.sweep_file.is_file():
        if resume:
            raise ConfigError(
                f"name: there is no sweep {config.name!r} in {paths.base} to resume; launch it "
                "without --resume"
            )
        return
    if not resume:
        raise ConfigError(
            f"name: the sweep {config.name!r} exists in {paths.sweep}; go on with --resume or "
            "launch under another name (--set name=...)"
        )
    before = yaml.safe_load(paths.sweep_file.read_text())
    for key in _differing(before, config.resolved()):
        raise ConfigError(
            f"{key}: differs from the sweep {config.name!r} that is to be resumed; set it back, or "
            "launch under another name (--set name=...)"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in now:
        if key in MAY_CHANGE_ON_RESUME:
            continue
        if key == "search":
            for inner in now[key]:
                if inner not in SEARCH_MAY_CHANGE and before[key].get(inner) != now[key][inner]:
                    yield f"search.{inner}"
        elif before.get(key) != now[key]:
            yield key


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
def _alone(config: SweepConfig, paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's lock: two launches of one name would undo each other's trials."""
    paths.make_sweep()
    with private_files():
        lock = paths.lock.open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"name: the sweep {config.name!r} is being run by process {lock.read().strip()}; "
                "wait for it or stop it, or launch under another name (--set name=...)"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


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
def _ray(config: SweepConfig) -> Iterator[None]:
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
            "start one with `ray start --head` or `ray up cluster.yaml`, or use local"
        ) from error
    try:
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
    config: SweepConfig, prepared: Prepared, paths: SweepPaths
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

    def search(self, profile: Profile, workers: ResidentWorkers) -> None:
        """All trials of the sweep, through Ray Tune and Optuna."""
        from search.searcher import StudySearcher, interrupted
        from search.tuning import job_name, tune_search

        config, prepared, search = self.config, self.prepared, self.config.search
        started = time.monotonic()
        study = self._study()
        again = interrupted(study)
        first = first_choices(prepared, profile, search.arms) if search.warm_start else []
        searcher = StudySearcher(
            study,
            prepared.space,
            targets=prepared.targets,
            profile=profile,
            metric=search.metric,
            objectives=search.objectives,
            mode=search.mode,
            epochs=config.train.epochs,
            trials=search.trials,
            max_params=search.max_params,
            allocation=search.allocation,
            enqueue=[*again, *first],
            size=prepared.size,
            arms=search.arms,
        )
        left = search.trials - searcher.handed
        arms = [arm.name for arm in prepared.space.arms(search.arms)]
        self.view.stage("search", f"{left} trials over {', '.join(arms)}")
        if search.trials < len(arms):
            self.view.message(
                f"search.trials: {search.trials} is fewer than the {len(arms)} methods and arms; "
                "some get no trial"
            )
        self.result.states = states_of(study)
        self.result.best = best_of_each_method(study, search.mode)
        kept = KeptWeights(
            self.paths,
            config.tracking.keep_weights,
            collect=lambda number: workers.collect(job_name(number)),
            best=lambda: worth_keeping(study, search.mode),
        )
        observer = _Observer(config, self.result, self.tracker, self.view, searcher, kept)
        try:
            outcome = tune_search(
                searcher=searcher,
                queue=workers.queue,
                targets=prepared.targets,
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
                size=prepared.size,
                keep_weights=config.tracking.keep_weights != "none",
            )
            self.result.ended_by = outcome.ended_by
            if outcome.ended_by == "stopped":
                raise JobError(f"no workers are left: {outcome.reason}; go on with --resume")
            if outcome.reason:
                self.view.message(outcome.reason)
        finally:
            observer.write_the_rest()
            problem = kept.log(self.tracker, lambda: run_ids(study))
            if problem is not None:
                self.view.message(
                    f"{problem}; weights are left in {self.paths.weights}, for --resume"
                )
            self.result.states = states_of(study)
            self.result.best = best_of_each_method(study, search.mode)
            self.result.seconds["search"] = time.monotonic() - started

    def confirm(self, profile: Profile, workers: ResidentWorkers) -> None:
        """Retrain the best of each method with more seeds and measure them on test."""
        config, result = self.config, self.result
        if config.confirm is None or not result.best or result.ended_by != "trials":
            return
        started = time.monotonic()
        chosen = best_of_each_method(self._study(), config.search.mode, config.confirm.top)
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

    def _study(self) -> optuna.Study:
        from search.searcher import open_study

        search = self.config.search
        with private_files():
            return open_study(
                self.paths.study_uri,
                self.config.name,
                objectives=search.objectives,
                mode=search.mode,
                sampler=search.sampler,
                seed=search.seed,
            )


def first_choices(
    prepared: Prepared, profile: Profile, arm_keys: Sequence[str] = ()
) -> list[Choice]:
    """What is tried first: each paper's default, and a LoRA as large as the largest of them.

    Baselines have no say in how large the LoRA is.
    """
    space = prepared.space
    arms = [arm for arm in space.arms(arm_keys) if arm.method != "lora"]
    defaults = [space.default_choice(arm.method, arm.values) for arm in arms]
    counts = [
        make_plan(choice, prepared.targets, profile, prepared.size).trainable_params
        for choice in defaults
        if not METHODS[choice.method].baseline
    ]
    if not counts:
        return [space.default_choice("lora"), *defaults]
    return [space.lora_of_budget(max(counts), prepared.targets), *defaults]


def states_of(study: optuna.Study) -> dict[str, int]:
    """How many trials of a study ended in each state: complete, pruned, failed, cancelled."""
    from search.searcher import CHOICE, INTERRUPTED, REJECTED

    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    counts: Counter[str] = Counter()
    for trial in study.get_trials(deepcopy=False):
        if CHOICE not in trial.user_attrs or REJECTED in trial.user_attrs:
            continue
        state = "cancelled" if INTERRUPTED in trial.user_attrs else names.get(trial.state.name)
        if state is not None:
            counts[state] += 1
    return dict(counts)


def best_of_each_method(study: optuna.Study, mode: str, top: int = 1) -> list[dict[str, Any]]:
    """The best `top` complete trials of each arm, best first: method, arm, value, choice, size."""
    from search.searcher import ARM, CHOICE, METHOD, RUN_ID, TRAINABLE_PARAMS

    sign = -1.0 if mode == "max" else 1.0
    rows: dict[str, list[dict[str, Any]]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE":
            attributes = trial.user_attrs
            rows.setdefault(attributes[ARM], []).append(
                {
                    "method": attributes[METHOD],
                    "arm": attributes[ARM],
                    "value": trial.values[0],
                    "trainable_params": attributes[TRAINABLE_PARAMS],
                    "number": trial.number,
                    "run_id": attributes.get(RUN_ID),
                    "choice": json.loads(attributes[CHOICE]),
                }
            )

    def rank(row: Mapping[str, Any]) -> tuple[float, int, int]:
        return sign * row["value"], row["trainable_params"], row["number"]

    kept = [row for each in rows.values() for row in sorted(each, key=rank)[:top]]
    return sorted(kept, key=rank)


def worth_keeping(study: optuna.Study, mode: str) -> set[int]:
    """Numbers of the complete trials whose weights are worth keeping.

    They are each method's best, and the Pareto front where there are two objectives.
    """
    kept = {row["number"] for row in best_of_each_method(study, mode)}
    if len(study.directions) > 1:
        kept |= {trial.number for trial in study.best_trials}
    return kept


def run_ids(study: optuna.Study) -> dict[int, str]:
    """Trial number -> id of its MLflow run, for the trials that have one."""
    from search.searcher import RUN_ID

    trials = study.get_trials(deepcopy=False)
    return {t.number: t.user_attrs[RUN_ID] for t in trials if RUN_ID in t.user_attrs}


class _Observer:
    """Writes what Tune reports to the view and to MLflow.

    What MLflow does not take, for it is away, is kept in order and written later; training does not
    wait for it.
    """

    def __init__(
        self,
        config: SweepConfig,
        result: LaunchResult,
        tracker: Tracker,
        view: View,
        searcher: StudySearcher,
        kept: KeptWeights,
    ) -> None:
        self._config, self._result, self._tracker = config, result, tracker
        self._view, self._searcher, self._kept = view, searcher, kept
        self._runs: dict[int, str] = {}
        self._methods: dict[int, tuple[str, int]] = {}
        self._queued: dict[int, None] = {}
        self._shown: set[int] = set()
        self._unwritten: deque[Callable[[], None]] = deque()
        self._try_again = 0.0
        self._sign = 1.0 if config.search.mode == "max" else -1.0
        self._best = max((self._sign * row["value"] for row in result.best), default=None)

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
        assert self._result.sweep_run_id is not None
        run_id = self._tracker.start_trial(
            self._result.sweep_run_id, number, choice.as_dict(), plan, {"arm": arm}
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
