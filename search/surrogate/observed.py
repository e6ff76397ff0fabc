"""The trials that MLflow has a record of, as a model learns from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from search.surrogate.observation import Observation, recorded_features
from search.tracking.facts import RunFacts, choice_tag
from spaces.choice import Choice
from spaces.errors import RanksweepError
from spaces.features import FEATURES, has_blocks
from spaces.methods.registry import from_record, recorded
from spaces.planner import Planner

SAME_COUNT = 1.2
"""How far apart the parameters may be, as a ratio, of a plan that is made anew and of the one that
was trained: another profile moves a few rows, other target modules are other plans."""


@dataclass(frozen=True)
class ObservedTrial:
    """A complete trial and what it tells."""

    run: RunFacts
    choice: Choice | None
    """None where it is of another version of ranksweep that this one cannot read."""
    observation: Observation


def observed_trials(
    runs: Iterable[RunFacts], planner: Planner | None = None
) -> list[ObservedTrial]:
    """The complete trials among the runs, in their order.

    One that started from the trained weights of another is left out, and one that a sweep which
    went on in another experiment has there as well. The features are those that the run says; where
    it says none, or a plan of blocks has others by now, `planner` makes the plan again, if given. A
    run whose features cannot be had is left out.
    """
    found, seen = [], set()
    for run in runs:
        if run.token is not None and run.token in seen:
            continue
        seen.add(run.token)
        trial = _observed(run, planner)
        if trial is not None:
            found.append(trial)
    return found


def tells_something(run: RunFacts) -> bool:
    """Whether a run is that of a complete trial from the base, whose choice and value it says."""
    is_complete = run.kind == "trial" and run.status == "complete" and run.warm_from is None
    params = run.metrics.get("trainable_params", math.nan)
    known = run.choice is not None and math.isfinite(params)
    return is_complete and known and _is_number(value_of(run))


def value_of(run: RunFacts) -> float:
    """The metric that a trial's sweep has searched by; NaN where the run does not say it."""
    return run.metrics.get(run.metric or "", math.nan)


def _observed(run: RunFacts, planner: Planner | None) -> ObservedTrial | None:
    if not tells_something(run) or run.choice is None:
        return None
    choice = _choice(run.choice)
    params = int(run.metrics["trainable_params"])
    features = _features(run, choice, params, planner)
    if features is None:
        return None
    observation = Observation(
        features=features,
        method=run.method,
        value=value_of(run),
        params=params,
        repeat_of=choice_tag(recorded(run.choice)),
    )
    return ObservedTrial(run, choice, observation)


def _features(
    run: RunFacts, choice: Choice | None, params: int, planner: Planner | None
) -> Mapping[str, float] | None:
    said = run.features
    is_whole = said is not None and (not has_blocks(said) or said.keys() >= {*FEATURES})
    if is_whole or planner is None or choice is None:
        return said
    try:
        plan = planner.plan(choice)
    except RanksweepError:  # another profile, or a method that this planner cannot plan
        return said
    ratio = max(params, 1) / max(plan.trainable_params, 1)
    if not 1 / SAME_COUNT <= ratio <= SAME_COUNT:
        return said
    return recorded_features(plan, choice.learning_rate, planner.profile)


def _choice(record: Mapping[str, object]) -> Choice | None:
    try:
        return from_record(record)
    except RanksweepError:
        return None


def _is_number(value: float) -> bool:
    """Whether a metric is finite; databases keep an infinite one as the largest float."""
    return math.isfinite(value) and abs(value) < sys.float_info.max
