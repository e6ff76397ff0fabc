"""One launch of a sweep, top to bottom: profile if not cached, search, log, confirm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from search.config import SweepConfig
from search.confirm import Confirmation, confirm_best
from search.live import View
from search.paths import SweepPaths, private_files, redacted
from search.prepare import Prepared, prepare
from search.tracking import Tracker, absolute_uri
from spaces.choice import Choice
from spaces.errors import ConfigError, JobError, RanksweepError, TrackingError
from spaces.methods import make_plan, parse_choice
from spaces.plan import Plan
from spaces.profile import Profile

if TYPE_CHECKING:
    import optuna

    from search.searcher import EndState, StudySearcher
    from trainables.resident import ResidentWorkers

logger = logging.getLogger(__name__)

MAY_CHANGE_ON_RESUME = ("cluster", "confirm", "store", "tracking")
SEARCH_MAY_CHANGE = ("trials", "time_budget")


@dataclass
class LaunchResult:
    """What a launch did: seconds per stage, and the best trial of each method, best first."""

    name: str
    profile_key: str
    profile_cached: bool
    tracking_uri: str
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
    view.stage("prepare", f"{config.base} on {config.task.name}")
    started = time.monotonic()
    prepared = prepare(config)
    profile = prepared.store.get(prepared.key)
    result = LaunchResult(
        name=config.name,
        profile_key=prepared.key,
        profile_cached=profile is not None,
        tracking_uri=redacted(absolute_uri(config.tracking.uri)),
    )
    if profile is not None:
        view.message(f"profile {prepared.key[:12]} is cached in {prepared.store.name}")
        if profile_only:
            return result
    tracker = Tracker(config.tracking.uri, config.tracking.experiment)
    paths.make_sweep()
    with _log_file(paths):
        if not profile_only:
            result.sweep_run_id = _open_sweep(config, prepared, tracker, paths, resume)
        result.seconds["prepare"] = time.monotonic() - started
        end: tuple[str, str | None] = ("failed", None)
        try:
            with _ray(config), _resident_workers(config, prepared, paths) as workers:
                profile = _profile(config, prepared, profile, workers, tracker, view, result)
                if not profile_only:
                    _search(config, prepared, profile, workers, tracker, view, result, paths)
                    _confirm(config, prepared, profile, workers, tracker, view, result, paths)
            end = ("complete", None)
        except KeyboardInterrupt:
            end = ("interrupted", "Ctrl-C")
            view.message("interrupted; the same command with --resume goes on with this sweep")
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
            },
        )
    with private_files():
        paths.sweep_file.write_text(yaml.safe_dump(config.resolved(), sort_keys=False))
    return run_id


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
def _log_file(paths: SweepPaths) -> Iterator[None]:
    """Keep what is logged during the launch in the sweep's folder."""
    with private_files():
        handler = logging.FileHandler(paths.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
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


def _resident_workers(
    config: SweepConfig, prepared: Prepared, paths: SweepPaths
) -> ResidentWorkers:
    from trainables.resident import GroupSettings, ResidentWorkers

    return ResidentWorkers(
        base_uri=prepared.base_uri,
        base_fingerprint=prepared.base_fingerprint,
        task=prepared.task,
        precision=config.precision,
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


def _profile(
    config: SweepConfig,
    prepared: Prepared,
    profile: Profile | None,
    workers: ResidentWorkers,
    tracker: Tracker,
    view: View,
    result: LaunchResult,
) -> Profile:
    """The profile from the store, or computed, published and logged."""
    run_id = tracker.start_profile(
        result.sweep_run_id,
        prepared.key,
        params=config.profile.model_dump(mode="json"),
        tags={
            "task": config.task.name,
            "base": prepared.base_fingerprint,
            "base_uri": prepared.base_uri,
        },
    )
    if profile is not None:
        if tracker.find_profile(prepared.key) != run_id:
            tracker.finish_profile(run_id, "complete", tags={"from_store": prepared.store.name})
        return profile
    view.stage("profile", f"{len(prepared.targets)} modules; the workers are starting")
    started = time.monotonic()

    def on_event(event: Mapping[str, Any]) -> None:
        if event["type"] == "started":
            view.stage("profile", f"{len(prepared.targets)} modules")
        elif event["type"] == "progress":
            view.stage("profile", str(event["phase"]))
            view.profile_step(int(event["done"]), int(event["total"]))

    try:
        answer = workers.run(
            {"kind": "profile", "settings": config.profile.model_dump(mode="json")},
            on_event=on_event,
        )
        data = answer["profile"]
        profile = Profile.from_bytes(data, "the computed profile")
        _check_inputs_unchanged(config, prepared)
    except BaseException as error:
        tracker.finish_profile(run_id, "failed", error=str(error) or type(error).__name__)
        raise
    digest = hashlib.sha256(data).hexdigest()
    first = prepared.store.put(
        prepared.key,
        data,
        {
            "base": prepared.base_uri,
            "base_fingerprint": prepared.base_fingerprint,
            "task": config.task.name,
            "train_fingerprint": prepared.task.train_fingerprint,
            "modules": len(prepared.targets),
            "scored_steps": profile.scored_steps,
            "top_percent_grid": list(profile.top_percent_grid),
            "seconds": round(float(answer["seconds"]), 3),
        },
    )
    if not first:
        view.message("another launch has published this profile first; its copy is used")
        profile = prepared.store.get(prepared.key) or profile
    result.seconds["profile"] = time.monotonic() - started
    tracker.finish_profile(
        run_id,
        "complete",
        metrics={
            "seconds": float(answer["seconds"]),
            "scored_steps": float(profile.scored_steps),
            "bytes": float(len(data)),
        },
        tags={"profile_sha256": digest, "store": prepared.store.name},
    )
    view.message(f"profile {prepared.key[:12]} is in {prepared.store.name}")
    return profile


def _check_inputs_unchanged(config: SweepConfig, prepared: Prepared) -> None:
    """Hash base and training rows again: a profile is published for what it was computed on."""
    from trainables.bases import fingerprint
    from trainables.tasks import build_task

    if fingerprint(prepared.base_uri) != prepared.base_fingerprint:
        raise JobError("base: its files changed while it was profiled; launch again")
    if build_task(config.task, config.base).train_fingerprint != prepared.task.train_fingerprint:
        raise JobError("task.data: the rows changed while they were profiled; launch again")


def _search(
    config: SweepConfig,
    prepared: Prepared,
    profile: Profile,
    workers: ResidentWorkers,
    tracker: Tracker,
    view: View,
    result: LaunchResult,
    paths: SweepPaths,
) -> None:
    """All trials of the sweep, through Ray Tune and Optuna."""
    from search.searcher import StudySearcher, interrupted, open_study
    from search.tuning import tune_search

    search = config.search
    started = time.monotonic()
    with private_files():
        study = open_study(
            paths.study_uri,
            config.name,
            objectives=search.objectives,
            mode=search.mode,
            sampler=search.sampler,
            seed=search.seed,
        )
    again = interrupted(study)
    first = first_choices(prepared, profile) if search.warm_start else []
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
    )
    left = search.trials - searcher.handed
    view.stage("search", f"{left} trials over {', '.join(prepared.space.methods)}")
    result.states = states_of(study)
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
            storage_path=paths.tune,
            name="search",
            observer=_Observer(config, result, tracker, view, searcher),
        )
        result.ended_by = outcome.ended_by
        if outcome.reason:
            view.message(outcome.reason)
    finally:
        result.states = states_of(study)
        result.best = best_of_each_method(study, search.mode)
        result.seconds["search"] = time.monotonic() - started


def first_choices(prepared: Prepared, profile: Profile) -> list[Choice]:
    """What is tried first: each paper's default, and a LoRA as large as the largest of them."""
    defaults = [
        prepared.space.default_choice(method)
        for method in prepared.space.methods
        if method != "lora"
    ]
    counts = [make_plan(choice, prepared.targets, profile).trainable_params for choice in defaults]
    if not counts:
        return [prepared.space.default_choice("lora")]
    return [prepared.space.lora_of_budget(max(counts), prepared.targets), *defaults]


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
    """The best `top` complete trials of each method, best first: method, value, choice, size."""
    from search.searcher import CHOICE, METHOD, RUN_ID, TRAINABLE_PARAMS

    sign = -1.0 if mode == "max" else 1.0
    rows: dict[str, list[dict[str, Any]]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.name == "COMPLETE":
            attributes = trial.user_attrs
            rows.setdefault(attributes[METHOD], []).append(
                {
                    "method": attributes[METHOD],
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


class _Observer:
    """Writes what Tune reports to MLflow and to the view."""

    def __init__(
        self,
        config: SweepConfig,
        result: LaunchResult,
        tracker: Tracker,
        view: View,
        searcher: StudySearcher,
    ) -> None:
        self._config, self._result, self._tracker = config, result, tracker
        self._view, self._searcher = view, searcher
        self._runs: dict[int, str] = {}
        self._methods: dict[int, tuple[str, int]] = {}
        self._sign = 1.0 if config.search.mode == "max" else -1.0
        self._best = max((self._sign * row["value"] for row in result.best), default=None)

    def trial_started(self, number: int, choice: Choice, plan: Plan) -> None:
        self._methods[number] = choice.method, plan.trainable_params
        self._view.trial_started(number, choice.method, plan.trainable_params)
        assert self._result.sweep_run_id is not None
        run_id = self._tracker.start_trial(
            self._result.sweep_run_id, number, choice.as_dict(), plan
        )
        self._runs[number] = run_id
        self._searcher.set_run_id(number, run_id)

    def trial_epoch(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        value = float(metrics[self._config.search.metric])
        self._view.trial_epoch(number, epoch, self._config.train.epochs, value)
        if number in self._runs:
            self._tracker.log_epoch(self._runs[number], epoch, _epoch_metrics(metrics))

    def trial_ended(
        self, number: int, state: EndState, metrics: Mapping[str, Any], error: str | None
    ) -> None:
        value = metrics.get(self._config.search.metric)
        self._view.trial_finished(number, state, value)
        if error is not None and state == "failed":
            self._view.message(f"trial {number} failed: {error}")
        method, params = self._methods.get(number, ("", 0))
        if state == "complete" and value is not None:
            gain = self._sign * float(value)
            if self._best is None or gain > self._best:
                self._best = gain
                self._view.best(number, method, float(value), params)
        if number in self._runs:
            last = {
                key: float(metrics[key]) for key in ("head_params",) if metrics.get(key) is not None
            }
            self._tracker.finish_trial(self._runs.pop(number), state, metrics=last, error=error)


def _epoch_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    hidden = ("epoch", "epochs_done", "trainable_params", "head_params")
    return {
        key: float(value)
        for key, value in metrics.items()
        if key not in hidden and isinstance(value, int | float)
    }


def _confirm(
    config: SweepConfig,
    prepared: Prepared,
    profile: Profile,
    workers: ResidentWorkers,
    tracker: Tracker,
    view: View,
    result: LaunchResult,
    paths: SweepPaths,
) -> None:
    """Retrain the best of each method with more seeds and measure them on test."""
    if config.confirm is None or not result.best or result.ended_by == "time_budget":
        return
    from search.searcher import open_study

    search = config.search
    study = open_study(
        paths.study_uri, config.name, objectives=search.objectives, mode=search.mode,
        sampler=search.sampler, seed=search.seed,
    )  # fmt: skip
    chosen = best_of_each_method(study, search.mode, config.confirm.top)
    started = time.monotonic()
    assert result.sweep_run_id is not None
    confirmed: Sequence[Confirmation] = confirm_best(
        chosen,
        config=config,
        plans=[make_plan(parse_choice(row["choice"]), prepared.targets, profile) for row in chosen],
        workers=workers,
        tracker=tracker,
        sweep_run_id=result.sweep_run_id,
        view=view,
    )
    result.confirmation = [each.as_dict() for each in confirmed]
    result.seconds["confirm"] = time.monotonic() - started
