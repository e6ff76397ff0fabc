"""All that MLflow has of one sweep, read once: what its report is drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.config.yaml_file import parse_yaml
from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.comparison import Comparison, compared
from search.queries.sweep_state import best_of_arms, numbered, sweep_named
from search.queries.trial_run import SWEEP
from search.redaction import redacted
from search.tracking.facts import Point, RunFacts
from search.tracking.runs import RecordedRuns
from spaces.errors import ConfigError, RanksweepError, TrackingError, nearest

TASK = "task.json"


@dataclass(frozen=True)
class CurvePoint:
    """The metric on dev at a moment of a training; `epoch` counts from its start and may be broken
    (a look within an epoch), `at_ms` is in milliseconds of Unix time."""

    epoch: float
    value: float
    at_ms: int


@dataclass(frozen=True)
class Spent:
    """Seconds that a run's group has trained and measured, as its workers' clock has it."""

    training: float
    measuring: float


@dataclass(frozen=True)
class SweepRecord:
    """One sweep as MLflow has it.

    `config` is its file as it was launched, without credentials, and `told` what was told of its
    rows (`task.json`); both are empty where they were not kept. `trials` are its trials in whatever
    state, by number, each number once; `confirmations` are the complete ones, by number and seed.
    `best` is the best choice of each arm, best first. `comparison` is None where nothing was
    confirmed. `curves` has the metric on dev over the epochs, by run id: of every trial where they
    are few, else of those that stand out. `profile` is the run of its profile, `base` what was
    measured of the untouched base; None where there is none. `spent` has the seconds of trials and
    confirmations, by run id. `tracking_uri` is where it was read, without credentials.
    """

    run: RunFacts
    objective: Objective
    config: Mapping[str, Any]
    told: Mapping[str, Any]
    trials: tuple[RunFacts, ...]
    confirmations: tuple[RunFacts, ...]
    best: tuple[BestChoice, ...]
    comparison: Comparison | None
    curves: Mapping[str, tuple[CurvePoint, ...]]
    profile: RunFacts | None
    base: RunFacts | None
    spent: Mapping[str, Spent] = field(default_factory=dict)
    tracking_uri: str = ""

    @property
    def seconds(self) -> dict[str, float]:
        """Stage of its last launch -> seconds it took: prepare, profile, search, confirm."""
        return {
            name.removeprefix("seconds."): value
            for name, value in self.run.metrics.items()
            if name.startswith("seconds.")
        }

    def setting(self, *keys: str) -> Any:
        """What its file says under a key, such as ("train", "epochs"); None where it does not."""
        value: Any = self.config
        for key in keys:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value


def read_sweep(recorded: RecordedRuns, sweep: str, *, max_curves: int = 200) -> SweepRecord:
    """The newest sweep of this name, or that of this run id.

    Of more than `max_curves` trials those have a curve that stand out: the best of each arm, then
    the best of all, then an even sample. Raises ConfigError where MLflow has no such sweep,
    TrackingError where it cannot be read.
    """
    run = _found(recorded, sweep)
    objective = Objective(run.metric or "accuracy", run.mode or "max")
    children = recorded.search({}, [run.experiment_id], run.run_id)
    trials = sorted(numbered(children, "trial"), key=lambda each: each.number or 0)
    complete = [each for each in children if each.status == "complete"]
    confirmations = sorted(
        numbered(complete, "confirm"), key=lambda each: (each.number or 0, each.seed or 0)
    )
    best = best_of_arms(trials, objective)
    with_curve = [each.run_id for each in _standing_out(trials, best, objective, max_curves)]
    histories = recorded.histories(with_curve, objective.metric)
    return SweepRecord(
        run=run,
        objective=objective,
        config=_mapping(recorded, run.run_id, SWEEP),
        told=_mapping(recorded, run.run_id, TASK),
        trials=tuple(trials),
        confirmations=tuple(confirmations),
        best=tuple(best),
        comparison=_comparison(recorded, run, complete) if confirmations else None,
        curves={run_id: _curve(points) for run_id, points in histories.items()},
        profile=_profile(recorded, run),
        base=next((each for each in children if each.kind == "base"), None),
        spent=_spent(recorded, trials, confirmations),
        tracking_uri=redacted(recorded.uri),
    )


def _found(recorded: RecordedRuns, sweep: str) -> RunFacts:
    newest, names = sweep_named(recorded, sweep)
    if newest is None:
        hint = nearest(sweep, names) if names else "it has none"
        raise ConfigError(
            f"SWEEP: MLflow has no sweep of the name or run id {sweep[:80]!r}; {hint} "
            "(--tracking names another MLflow)"
        )
    return newest


def _mapping(recorded: RecordedRuns, run_id: str, name: str) -> dict[str, Any]:
    """An artifact that holds a mapping; empty where it was not kept, or is elsewhere."""
    try:
        text = recorded.artifact(run_id, name).decode()
        read = json.loads(text) if name == TASK else parse_yaml(text, name)
    except (RanksweepError, OSError, ValueError):
        return {}
    return dict(read) if isinstance(read, Mapping) else {}


def _comparison(
    recorded: RecordedRuns, run: RunFacts, complete: Sequence[RunFacts]
) -> Comparison | None:
    try:
        return compared(recorded, [(run, complete)])
    except TrackingError:
        raise
    except RanksweepError:  # what was confirmed has no value on test
        return None


def _profile(recorded: RecordedRuns, run: RunFacts) -> RunFacts | None:
    """The run of its profile, of several that of its own."""
    if run.profile_key is None:
        return None
    wanted = {"kind": "profile", "profile_key": run.profile_key}
    found = recorded.search(wanted, [run.experiment_id])
    return next((each for each in found if each.parent == run.run_id), next(iter(found), None))


def _standing_out(
    trials: Sequence[RunFacts], best: Sequence[BestChoice], objective: Objective, most: int
) -> list[RunFacts]:
    if len(trials) <= most:
        return list(trials)
    firsts = {row.run_id for row in best}
    measured = [each for each in trials if objective.metric in each.metrics]
    ranked = sorted(
        measured,
        key=lambda each: (
            each.run_id not in firsts,
            each.status != "complete",
            -objective.gain(each.metrics[objective.metric]),
        ),
    )
    chosen, rest = ranked[: most // 2], ranked[most // 2 :]
    rest.sort(key=lambda each: each.number or 0)
    left = most - len(chosen)
    return chosen + [rest[at * len(rest) // left] for at in range(min(left, len(rest)))]


def _curve(points: Iterable[Point]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(float(each.step), each.value, each.at_ms) for each in points)


def _spent(
    recorded: RecordedRuns, trials: Sequence[RunFacts], confirmations: Sequence[RunFacts]
) -> dict[str, Spent]:
    """What each run has trained and measured.

    A confirmation reports its last epoch alone, which stands for its others.
    """
    runs = [each for each in (*trials, *confirmations) if "training_seconds" in each.metrics]
    ids = [each.run_id for each in runs]
    training = recorded.histories(ids, "training_seconds")
    measuring = recorded.histories(ids, "evaluation_seconds")
    found = {}
    for each in runs:
        points = training.get(each.run_id, [])
        epochs = points[-1].step if each.kind == "confirm" and len(points) == 1 else 1
        found[each.run_id] = Spent(
            sum(point.value for point in points) * max(epochs, 1),
            sum(point.value for point in measuring.get(each.run_id, [])),
        )
    return found
