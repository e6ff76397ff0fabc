"""What earlier sweeps tell of this one: their complete trials, as the tracking server has them.

Three kinds of sweeps are akin to a sweep of a task on a base: others of the same task on the same
base, of the same task on other bases, and of other tasks on the same base. A model learns from the
bad trials of a sweep as well as from its good ones, so they are taken over the whole range of what
was measured. No test score is looked at.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

from search.surrogate.observation import Observation, RelatedSweep
from search.surrogate.observed import ObservedTrial, observed_trials, tells_something, value_of
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from spaces.planner import Planner

SWEEPS = 8
"""From how many earlier sweeps something is learned at most."""
TRIALS_EACH, TRIALS = 60, 240
"""From how many trials of each, and of all, at most."""
FEWEST_TRIALS = 4
"""A sweep with fewer complete trials tells nothing: its values have no scale of their own."""

Item = TypeVar("Item")
Relation = Literal["same", "task", "base"]
_RELATIONS: tuple[Relation, ...] = get_args(Relation)
_IN_WORDS = {
    "same": "of this task and base",
    "task": "of this task on another base",
    "base": "of another task on this base",
}


def related_sweeps(
    tracking_uri: str,
    *,
    task_fingerprint: str,
    base_fingerprint: str,
    sweep_run_id: str | None,
    planner: Planner,
    sweeps_at_most: int = SWEEPS,
    trials_at_most: int = TRIALS,
) -> list[RelatedSweep]:
    """The earlier sweeps that are akin, nearest relation first, of one relation the largest first.

    Features are those that the trials' runs say. Of runs that do not say them, `planner` makes the
    plans again where the base is the same; others are left out. `sweep_run_id` is that of the sweep
    itself, which is not its own past.

    Raises:
        TrackingError: the tracking server or database cannot be read.
    """
    recorded = RecordedRuns(tracking_uri)
    experiments = recorded.experiments()
    akin: dict[tuple[Relation, str], dict[str, RunFacts]] = {}
    for tag, value in (("task_fingerprint", task_fingerprint), ("base", base_fingerprint)):
        for run in recorded.search(
            {"kind": "trial", "status": "complete", tag: value}, experiments
        ):
            if tells_something(run) and run.parent not in (None, sweep_run_id):
                relation = _relation(run, task_fingerprint, base_fingerprint)
                akin.setdefault((relation, str(run.parent)), {})[run.run_id] = run
    found: list[RelatedSweep] = []
    for relation, run_id in sorted(
        akin, key=lambda key: (_RELATIONS.index(key[0]), -len(akin[key]))
    ):
        if len(found) == sweeps_at_most:
            break
        # Plans are made of no more trials than are taken.
        runs = _spread(list(akin[relation, run_id].values()), TRIALS_EACH, value_of)
        trials = observed_trials(runs, None if relation == "task" else planner)
        if len(trials) >= FEWEST_TRIALS:
            found.append(_sweep(relation, run_id, trials))
    each = trials_at_most // max(1, len(found))
    return [
        replace(sweep, observations=tuple(_spread(sweep.observations, each, lambda o: o.value)))
        for sweep in found
    ]


def announcement(sweeps: Sequence[RelatedSweep]) -> str:
    """For the user: learns from 1 earlier sweep (50 trials): ab12cd34 of this task and base."""
    trials = sum(len(each.observations) for each in sweeps)
    told = ", ".join(f"{each.run_id[:8]} {_IN_WORDS[each.relation]}" for each in sweeps)
    what = "1 earlier sweep" if len(sweeps) == 1 else f"{len(sweeps)} earlier sweeps"
    return f"learns from {what} ({trials} trials): {told}"


def _relation(run: RunFacts, task_fingerprint: str, base_fingerprint: str) -> Relation:
    if run.task_fingerprint != task_fingerprint:
        return "base"
    return "same" if run.base == base_fingerprint else "task"


def _sweep(relation: Relation, run_id: str, trials: Sequence[ObservedTrial]) -> RelatedSweep:
    first = trials[0].run
    observations = tuple(trial.observation for trial in trials)
    return RelatedSweep(run_id, relation, first.mode != "min", observations)


def _spread(items: Sequence[Item], at_most: int, value: Callable[[Item], float]) -> list[Item]:
    """At most so many, from the least to the largest value by even steps of rank."""
    ranked = sorted(items, key=value)
    if len(ranked) <= at_most:
        return ranked
    step = (len(ranked) - 1) / max(at_most - 1, 1)
    return [ranked[round(i * step)] for i in range(at_most)]


# -- as a text -------------------------------------------------------------------------------------


def packed(sweeps: Sequence[RelatedSweep], most_characters: int) -> str:
    """The sweeps as a text of at most so many characters, which `unpacked` reads: the farthest are
    left out where they do not fit."""
    kept = list(sweeps)
    while True:
        names = sorted({n for s in kept for o in s.observations for n in o.features})
        document = {"features": names, "sweeps": [_rows(sweep, names) for sweep in kept]}
        data = json.dumps(document, separators=(",", ":")).encode()
        text = base64.b85encode(zlib.compress(data, 9)).decode()
        if len(text) <= most_characters or not kept:
            return text
        kept.pop()


def unpacked(text: str) -> list[RelatedSweep]:
    """The sweeps that `packed` has written."""
    document = json.loads(zlib.decompress(base64.b85decode(text)))
    names = document["features"]
    return [
        RelatedSweep(
            each["run"],
            each["relation"],
            each["maximized"],
            tuple(_observation(row, names, each["run"]) for row in each["trials"]),
        )
        for each in document["sweeps"]
    ]


def _rows(sweep: RelatedSweep, names: Sequence[str]) -> dict[str, Any]:
    """A sweep with a row for each trial: method, value, rows, parameters, choice, features."""
    choices: dict[str, int] = {}
    rows = [
        [
            each.method,
            each.value,
            each.rows,
            each.params,
            choices.setdefault(each.repeat_of, len(choices)),
            *(each.features.get(name) for name in names),
        ]
        for each in sweep.observations
    ]
    return {
        "run": sweep.run_id,
        "relation": sweep.relation,
        "maximized": sweep.maximized,
        "trials": rows,
    }


def _observation(row: Sequence[Any], names: Sequence[str], run_id: str) -> Observation:
    method, value, rows, params, choice, *features = row
    said = {name: x for name, x in zip(names, features, strict=True) if x is not None}
    return Observation(said, method, value, rows, params, f"{run_id}:{choice}")
