"""Where a sweep stands, from MLflow alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from search.config.yaml_file import parse_yaml
from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.holding import Seeds, noise_of
from search.queries.trial_run import SWEEP
from search.tracking.facts import RunFacts, choice_tag, looks_in
from search.tracking.liveness import Fate, fate, told
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, RanksweepError
from spaces.methods.registry import from_record

Stage = Literal["profile", "search", "confirm"]


@dataclass(frozen=True)
class TrialState:
    """A trial, or a confirmation of one with its `seed`, as far as it is.

    `epoch` of `epochs` are done, `value` is its newest on dev; `asked_by` says how a user asked for
    it, and `warm_from` whose weights it started from. `looks` has its values after training on
    shares of the rows.
    """

    number: int
    seed: int | None
    arm: str
    state: str
    trainable_params: int | None
    epoch: int
    epochs: int
    value: float | None
    started_ms: int
    asked_by: str | None
    warm_from: int | None
    error: str | None
    looks: dict[float, float]
    collapsed: bool = False
    """Whether its newest epoch has predicted one class alone."""


@dataclass(frozen=True)
class SweepState:
    """A sweep at one moment.

    `launch` says whether its launch lives, `told` the same in a line where it has not ended.
    `trials` are those of its search, with what users have asked for beside; `states` counts the
    search's trials that are over, and `best` is the best of each arm, best first.
    """

    name: str
    run_id: str
    status: str
    launch: Fate
    told: str | None
    error: str | None
    stage: Stage
    metric: str
    mode: str
    trials: int
    states: dict[str, int]
    running: list[TrialState]
    ended: list[TrialState]
    confirming: list[TrialState]
    confirmed: list[TrialState]
    best: list[BestChoice]
    profile_key: str | None
    seconds: dict[str, float]

    @property
    def objective(self) -> Objective:
        """What it searches for."""
        return Objective(self.metric, "min" if self.mode == "min" else "max")


class SweepReader:
    """Reads where a sweep stands, again and again; `sweep` is its name or its run id.

    Of several of one name the newest is read.

    Raises:
        ConfigError: MLflow has no such sweep.
        TrackingError: MLflow cannot be read.
    """

    def __init__(self, recorded: RecordedRuns, sweep: str) -> None:
        self._recorded = recorded
        newest, names = sweep_named(recorded, sweep)
        if newest is None:
            raise ConfigError(
                f"SWEEP: MLflow has no sweep of the name or run id {sweep!r}; it has "
                f"{', '.join(names[:10]) or 'none'} (--tracking names another)"
            )
        self.run = newest
        self.config = self._config()
        """The sweep's file as plain data, without credentials; empty where it is not kept."""

    @property
    def uri(self) -> str:
        """Where the sweep is tracked to. It may hold credentials."""
        return self._recorded.uri

    def look(self) -> SweepState:
        """Where the sweep stands now. Raises TrackingError."""
        run = self._recorded.find(self.run.run_id)
        if run is None:
            raise ConfigError(f"SWEEP: the run of {self.run.sweep!r} was deleted in MLflow")
        children = self._recorded.search({}, [run.experiment_id], run.run_id)
        objective = Objective(run.metric or "accuracy", run.mode or "max")
        trials = sorted(numbered(children, "trial"), key=lambda each: each.number or 0)
        confirms = numbered(children, "confirm")
        stage: Stage = "confirm" if confirms else "search" if trials else "profile"
        found = [self._trial(each, objective.metric) for each in trials]
        again = [self._trial(each, f"test_{objective.metric}") for each in confirms]
        ended = [each for each in found if each.state != "running"]
        asked = sum(each.asked_by is not None for each in found)
        return SweepState(
            name=run.sweep,
            run_id=run.run_id,
            status=run.status or "running",
            launch=fate(run),
            told=told(run),
            error=run.error,
            stage=stage,
            metric=objective.metric,
            mode=objective.mode,
            trials=(run.trials or self._asked_for("search", "trials")) + asked,
            states=dict(Counter(each.state for each in ended)),
            running=[each for each in found if each.state == "running"],
            ended=ended,
            confirming=[each for each in again if each.state == "running"],
            confirmed=[each for each in again if each.state != "running"],
            best=best_of_arms(trials, objective),
            profile_key=run.profile_key,
            seconds={
                name.removeprefix("seconds."): value
                for name, value in run.metrics.items()
                if name.startswith("seconds.")
            },
        )

    def _config(self) -> dict[str, Any]:
        try:
            text = self._recorded.artifact(self.run.run_id, SWEEP).decode()
            config = parse_yaml(text, SWEEP)
        except (RanksweepError, OSError):  # its artifacts are elsewhere
            return {}
        return dict(config) if isinstance(config, Mapping) else {}

    def _asked_for(self, section: str, key: str) -> int:
        value = (self.config.get(section) or {}).get(key)
        return value if isinstance(value, int) else 0

    def _trial(self, run: RunFacts, value: str) -> TrialState:
        params = run.metrics.get("trainable_params")
        return TrialState(
            number=run.number or 0,
            seed=run.seed if run.kind == "confirm" else None,
            arm=run.arm or run.method,
            state=run.status or "running",
            trainable_params=None if params is None else int(params),
            epoch=run.epoch,
            epochs=self._asked_for("train", "epochs") * _length(run),
            value=run.metrics.get(value),
            started_ms=run.started_ms,
            asked_by=run.asked_by,
            warm_from=run.warm_from,
            error=run.error,
            looks=looks_in(run.metrics),
            collapsed=run.collapsed,
        )


def sweep_named(recorded: RecordedRuns, sweep: str) -> tuple[RunFacts | None, list[str]]:
    """The newest sweep of this name, or that of this run id, None without one; and the names of
    all that there are, sorted."""
    sweeps = recorded.search({"kind": "sweep"}, recorded.experiments())
    found = next((run for run in sweeps if sweep in (run.run_id, run.sweep)), None)
    return found, sorted({run.sweep for run in sweeps})


def best_of_arms(
    trials: Iterable[RunFacts], objective: Objective, top: int = 1
) -> list[BestChoice]:
    """The best `top` choices of each arm, best first (search/queries/holding.py).

    A trial that started from the weights of another is ranked with none.
    """
    groups: dict[tuple[str, str], list[RunFacts]] = {}
    for run in trials:
        is_ranked = run.status == "complete" and run.warm_from is None and run.choice is not None
        if is_ranked and objective.metric in run.metrics:
            groups.setdefault((run.arm or run.method, choice_tag(run.choice or {})), []).append(run)
    seeds = {
        key: Seeds(
            [run.metrics[objective.metric] for run in runs], sum(run.collapsed for run in runs)
        )
        for key, runs in groups.items()
    }
    noise = noise_of(seeds.values())
    found = [
        (seeds[key].rank(noise, objective), _arm_best(key[0], runs, seeds[key], noise, objective))
        for key, runs in groups.items()
    ]
    found.sort(key=lambda each: (*each[0], each[1].trainable_params, each[1].number))
    taken: Counter[str] = Counter()
    best: list[BestChoice] = []
    for _, row in found:
        taken[row.arm] += 1
        if taken[row.arm] <= top:
            best.append(row)
    return best


def _arm_best(
    arm: str, runs: Sequence[RunFacts], seeds: Seeds, noise: float, objective: Objective
) -> BestChoice:
    first = runs[0]
    return BestChoice(
        method=first.method,
        arm=arm,
        value=seeds.mean,
        values=list(seeds.values),
        seeds=len(runs),
        trainable_params=int(first.metrics.get("trainable_params", 0)),
        number=first.number or 0,
        run_id=first.run_id,
        choice=dict(first.choice or {}),
        holds=seeds.holds(noise, objective),
        collapsed=seeds.collapsed,
    )


def numbered(children: Iterable[RunFacts], kind: str) -> list[RunFacts]:
    """The runs of one kind, each number and seed once: the newest, which comes first."""
    found: dict[tuple[int | None, int | None], RunFacts] = {}
    for run in children:
        if run.kind == kind and run.number is not None:
            found.setdefault((run.number, run.seed), run)
    return list(found.values())


def _length(run: RunFacts) -> int:
    """How many times the epochs of a trial its choice is trained for."""
    try:
        return from_record(run.choice or {}).length
    except RanksweepError:  # of another version
        return 1
