"""What a recorded sweep has learned, from MLflow alone or else from its study; with its space and
its profile also what it would try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from search.config.reading import parse_sweep, resolve_store
from search.config.sweep import SweepConfig
from search.config.yaml_file import parse_yaml
from search.objective import Objective
from search.paths import SweepPaths, check_sweep_name
from search.queries.sweep_state import SweepReader
from search.store.profiles import ProfileStore
from search.study.asking import study_of_sweep
from search.study.observations import complete_trials, observations
from search.study.study import Study, choice_of
from search.surrogate.draws import LEADERS, Drawn, at_other_rates, draws
from search.surrogate.explain import WORTH_BELOW, Ahead, Explanation, Tried, explained
from search.surrogate.history import related_sweeps
from search.surrogate.observation import RelatedSweep
from search.surrogate.observed import observed_trials
from search.tracking.facts import RunFacts
from search.tracking.liveness import told
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, RanksweepError, TrackingError
from spaces.methods.registry import from_record
from spaces.planner import Planner
from spaces.profile import Profile
from spaces.search_space import SearchSpace
from spaces.target import TargetModule

ALL_LINEAR = "all-linear"


def explain_sweep(
    sweep: str, *, tracking_uri: str, store: str | None = None, top: int = 5
) -> Explanation:
    """What a sweep has learned; `sweep` is its name, of which the newest counts, or its run id.

    Where MLflow has no record of it, or cannot be read, its study is asked, if its folder is here.
    `store` has its profile, by default the store that the sweep names. `top` next trials are told.

    Raises:
        ConfigError: `top` is below 1, or there is no such sweep.
        TrackingError: MLflow cannot be read, and there is no study here.
    """
    if top < 1:
        raise ConfigError(f"--top: {top} is not a number of trials; use 1 or more")
    try:
        reader = SweepReader(RecordedRuns(tracking_uri), sweep)
    except (ConfigError, TrackingError):
        study = _study_here(sweep)
        if study is None:
            raise
        return _of_study(study, SweepPaths(name=sweep).absolute(), store, top)
    return _of_mlflow(reader, store, top)


# -- where the trials are --------------------------------------------------------------------------


def _of_mlflow(reader: SweepReader, store: str | None, top: int) -> Explanation:
    run = reader.run
    recorded = RecordedRuns(reader.uri)
    children = recorded.search({"kind": "trial"}, [run.experiment_id], run.run_id)
    grounds = _Grounds.of(reader.config, run.profile_key, store)
    found = observed_trials(children, grounds.planner)
    tried = [
        Tried(
            each.run.number or 0,
            dict(each.run.choice or {}) if each.choice is None else each.choice.as_dict(),
            each.observation,
        )
        for each in found
    ]
    objective = Objective(run.metric or "accuracy", run.mode or "max")
    complete = sum(child.status == "complete" and child.warm_from is None for child in children)
    start = Explanation(
        sweep=run.sweep,
        run_id=run.run_id,
        metric=objective.metric,
        mode=objective.mode,
        complete=complete,
        notes=[*_how_it_stands(run), *_left_out(complete - len(tried)), *grounds.notes],
    )
    return grounds.explained(start, tried, top, _related(reader.uri, run, grounds))


def _of_study(study: Study, paths: SweepPaths, store: str | None, top: int) -> Explanation:
    text = paths.sweep_file.read_text(encoding="utf-8") if paths.sweep_file.is_file() else "{}"
    raw = parse_yaml(text, str(paths.sweep_file))
    grounds = _Grounds.of(raw if isinstance(raw, Mapping) else {}, None, store)
    complete = complete_trials(study.get_trials(deepcopy=False))
    tried = [
        Tried(trial.number, choice_of(trial).as_dict(), observation)
        for trial in complete
        for observation in observations([trial], grounds.planner)
    ]
    config = grounds.config
    start = Explanation(
        sweep=study.study_name,
        run_id=None,
        metric="value" if config is None else config.search.metric,
        mode="max" if study.directions[0].name == "MAXIMIZE" else "min",
        complete=len(complete),
        notes=[
            "MLflow has no record of it: this is what its study says",
            *_left_out(len(complete) - len(tried)),
            *grounds.notes,
        ],
    )
    return grounds.explained(start, tried, top, [])


def _study_here(sweep: str) -> Study | None:
    """The study of a sweep that has a folder here; None where there is none."""
    try:
        return study_of_sweep(SweepPaths(name=check_sweep_name(sweep)).absolute(), None)
    except ConfigError:
        return None


def _how_it_stands(run: RunFacts) -> list[str]:
    notes = []
    if (line := told(run)) is not None:
        notes.append(f"{line}; this is what its trials tell so far")
    elif run.status != "complete":
        notes.append(f"the sweep is {run.status}{f': {run.error}' if run.error else ''}")
    if run.reason:
        notes.append(f"its search ended before all trials were out: {run.reason}")
    return notes


def _left_out(count: int) -> list[str]:
    if count <= 0:
        return []
    trials = "1 complete trial is" if count == 1 else f"{count} complete trials are"
    return [f"{trials} left out: what its plan was is not recorded, and cannot be made again here"]


def _related(uri: str, run: RunFacts, grounds: _Grounds) -> list[RelatedSweep]:
    """What the sweep's own sampler learns from besides, if it does."""
    config, planner = grounds.config, grounds.planner
    if config is None or planner is None or run.task_fingerprint is None:
        return []
    if config.search.sampler != "plan" or not config.search.warm_start:
        return []
    return related_sweeps(
        uri,
        task_fingerprint=run.task_fingerprint,
        base_fingerprint=run.base,
        sweep_run_id=run.run_id,
        planner=planner,
    )


# -- what may yet be tried -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grounds:
    """What a sweep may yet try, as far as its file and the store say; `notes` tell what lacks."""

    config: SweepConfig | None
    planner: Planner | None
    space: SearchSpace | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any], key: str | None, store: str | None) -> _Grounds:
        """From the sweep's file, and the store of its profile."""
        if not raw:
            return cls(
                None,
                None,
                None,
                ("what comes next is not told: its run in MLflow keeps no sweep file",),
            )
        try:
            config = parse_sweep(raw)
        except RanksweepError as error:
            why = f"what comes next is not told: its file is of another version ({error})"
            return cls(None, None, None, (why,))
        if key is None:
            why = "what comes next is not told: which profile is its own is known to MLflow alone"
            return cls(config, None, None, (why,))
        try:
            profile = ProfileStore(resolve_store(store, config.store)).get(key)
            if profile is None:
                raise ConfigError(f"there is no profile {key[:12]}; --store names another")
            targets = _targets(config, profile)
            space = config.search_space.fitted(targets, profile.top_percent_grid)
        except (RanksweepError, OSError) as error:
            why = f"what comes next is not told: {str(error).removeprefix('store: ')}"
            return cls(config, None, None, (why,))
        return cls(config, Planner(targets, profile), space, ())

    def explained(
        self,
        start: Explanation,
        tried: Sequence[Tried],
        top: int,
        history: Sequence[RelatedSweep],
    ) -> Explanation:
        """The explanation that `start` begins, with what comes next where that is known."""
        config = self.config
        if config is None or self.planner is None or self.space is None:
            return explained(start, tried, None, top=top)
        search = config.search
        arms = self.space.arms(search.arms)
        drawn = draws(self.space, self.planner, arms, takes=search.takes, seed=search.seed)
        without = [arm.name for arm in arms if arm.name not in {each.arm for each in drawn}]
        if without:
            why = f"of {', '.join(without)} nothing can be planned here, or not within max_params"
            start = replace(start, notes=[*start.notes, why])
        drawn += at_other_rates(self.space, self._leaders(tried))
        ahead = Ahead(drawn, pareto=config.pareto, at_least=WORTH_BELOW)
        if search.stop_when is not None:
            stop = search.stop_when
            ahead = replace(ahead, trials=stop.trials, at_least=stop.improvement_below)
        return explained(start, tried, ahead, top=top, history=history, seed=search.seed)

    def _leaders(self, tried: Sequence[Tried]) -> list[Drawn]:
        """The best of the tried choices that the space holds."""
        assert self.config is not None
        assert self.space is not None
        objective, keys = self.config.objective, self.config.search.arms
        best = sorted(tried, key=lambda each: -objective.gain(each.observation.value))
        found = []
        for each in best[:LEADERS]:
            with suppress(RanksweepError):  # of another version, or of a method no longer searched
                choice, told = from_record(each.choice), each.observation
                arm = self.space.arm_of(choice, keys)
                found.append(Drawn(choice, arm, told.features, told.params))
        return found


def _targets(config: SweepConfig, profile: Profile) -> tuple[TargetModule, ...]:
    """The sweep's target modules: all that its own profile has, or those of a borrowed one that it
    names, by PEFT's suffix rule."""
    patterns = config.profile.target_modules
    if config.profile.use is None or ALL_LINEAR in patterns:
        return profile.targets
    return tuple(
        target
        for target in profile.targets
        if any(f".{name}".endswith(f".{pattern}") for name in target.names for pattern in patterns)
    )
