"""The comparison of a sweep's methods on test, read back from MLflow alone."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

from search.objective import Objective
from search.tracking import liveness
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from spaces.errors import RanksweepError, UsageError, nearest

_log = logging.getLogger(__name__)
CONFIDENCE = 0.95


def compare(tracking_uri: str, sweep: str, against: str = "lora") -> list[Confirmation]:
    """The confirmed choices of a sweep, best mean first; `sweep` is its name or its run id.

    `against` is the arm or method that the others are set beside. Of several sweeps of one name the
    newest is taken; one that still runs is compared as far as it is, with a warning. Raises
    RanksweepError where there is no such sweep or nothing of it was confirmed, TrackingError where
    MLflow cannot be read.
    """
    recorded = RecordedRuns(tracking_uri)
    newest = _newest(recorded, sweep)
    children = recorded.search({"status": "complete"}, [newest.experiment_id], newest.run_id)
    if (told := liveness.told(newest)) is not None:
        _log.warning("%s; what it has not confirmed is missing", told)
    confirmed = [run for run in children if run.kind == "confirm"]
    if not confirmed:
        raise RanksweepError(
            f"{sweep}: nothing of it was confirmed on test; set `confirm` in the sweep and launch "
            "it with --resume"
        )
    objective = Objective(newest.metric or "accuracy", newest.mode or "max")
    trials = [run for run in children if run.kind == "trial"]
    choices = _choices(confirmed, trials, objective)
    arms = {str(row["arm"]) for row, _ in choices} | {str(row["method"]) for row, _ in choices}
    if against != "lora" and against not in arms:
        raise UsageError(f"--against: {against!r} was not confirmed; {nearest(against, arms)}")
    return summarize(choices, objective, against)


def constant_answer_on_test(tracking_uri: str, sweep: str) -> float | None:
    """What a model that answers every test row alike would reach; None where no launch said so.

    Raises as `compare` does.
    """
    return _newest(RecordedRuns(tracking_uri), sweep).metrics.get("constant_answer_test")


def _newest(recorded: RecordedRuns, sweep: str) -> RunFacts:
    sweeps = recorded.search({"kind": "sweep"}, recorded.experiments())
    newest = next((run for run in sweeps if sweep in (run.run_id, run.sweep)), None)
    if newest is None:
        names = sorted({run.sweep for run in sweeps})
        raise RanksweepError(
            f"{sweep}: no sweep of this name or run id in MLflow; it has "
            f"{', '.join(names[:10]) or 'none'}"
        )
    return newest


def _choices(
    confirmed: Sequence[RunFacts], trials: Sequence[RunFacts], objective: Objective
) -> list[tuple[dict[str, object], tuple[float, ...]]]:
    """(method, number, choice and size; test values by seed) of each choice, best on dev first."""
    name = f"test_{objective.metric}"
    runs: dict[int, dict[int, RunFacts]] = {}
    for run in confirmed:
        if name in run.metrics and run.number is not None and run.seed is not None:
            runs.setdefault(run.number, {}).setdefault(run.seed, run)
    gains = {
        run.number: objective.gain(run.metrics[objective.metric])
        for run in trials
        if objective.metric in run.metrics
    }
    rows = []
    for number in sorted(runs, key=lambda number: (-gains.get(number, -math.inf), number)):
        by_seed = [runs[number][seed] for seed in sorted(runs[number])]
        row = {
            "method": by_seed[0].method,
            "arm": by_seed[0].arm or by_seed[0].method,
            "number": number,
            "choice": by_seed[0].choice,
            "trainable_params": int(by_seed[0].metrics["trainable_params"]),
        }
        rows.append((row, tuple(run.metrics[name] for run in by_seed)))
    return rows


@dataclass(frozen=True)
class Confirmation:
    """One choice over several seeds: its test metric, and its difference from tuned LoRA's.

    `arm` is the method, with the keys that `search.arms` divides it by. `deviation` is the sample
    standard deviation (None of a single value). `difference` is [low, high], Welch's 95% interval
    of mean minus the reference's mean (tuned LoRA's unless another arm is named); None for the
    reference itself and where either has fewer than two values. `within_noise` says whether it
    holds zero.
    """

    method: str
    arm: str
    number: int
    choice: Mapping[str, Any]
    trainable_params: int
    metric: str
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    difference: tuple[float, float] | None
    within_noise: bool | None


def summarize(
    found: Sequence[tuple[Mapping[str, Any], tuple[float, ...]]],
    objective: Objective,
    reference: str = "lora",
) -> list[Confirmation]:
    """The choices, best on dev first, with their test values, beside the reference; best first.

    A row has method, arm, number, choice and trainable_params. One without any value is left out.
    `reference` is the arm (its best choice) or method that all are set beside.
    """
    number: object = None
    beside: tuple[float, ...] = ()
    for row, values in found:
        if values and reference in (row["arm"], row["method"]):
            number, beside = row["number"], values
            break
    summary = [
        _summary(row, values, () if row["number"] == number else beside, objective.metric)
        for row, values in found
        if values
    ]
    return sorted(summary, key=lambda each: -objective.gain(each.mean))


def _summary(
    row: Mapping[str, Any], values: tuple[float, ...], beside: tuple[float, ...], metric: str
) -> Confirmation:
    difference = welch_interval(values, beside)
    return Confirmation(
        method=row["method"],
        arm=row["arm"],
        number=row["number"],
        choice=row["choice"],
        trainable_params=row["trainable_params"],
        metric=metric,
        values=values,
        mean=float(np.mean(values)),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        difference=difference,
        within_noise=None if difference is None else difference[0] <= 0 <= difference[1],
    )


def welch_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Welch's 95% interval of mean(a) - mean(b), unequal variances; None below two values each.

    Two samples without any spread have the interval of their difference alone.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    gap = float(np.mean(a) - np.mean(b))
    if math.isclose(float(np.var(a)) + float(np.var(b)), 0.0, abs_tol=1e-24):
        return gap, gap
    with warnings.catch_warnings():
        # One sample of equal values is no loss of precision here: its variance is zero.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def verdict(rows: Sequence[Confirmation], reference: str = "lora") -> str:
    """One sentence on what the confirmations show of the methods beside the reference."""
    beside = called(reference)
    compared = [(row.arm, row.difference) for row in rows if row.difference is not None]
    if not compared:
        return _why_none_is_told(rows, reference)
    above = [arm for arm, (low, _) in compared if low > 0]
    below = [arm for arm, (_, high) in compared if high < 0]
    if not above and not below:
        return f"no difference from {beside} is beyond the noise ({len(compared)} compared)"
    told = [
        f"{sign} than {beside} beyond the noise: {', '.join(names)}"
        for sign, names in (("higher", above), ("lower", below))
        if names
    ]
    chance = (1 - CONFIDENCE) * len(compared)
    return (
        f"{'; '.join(told)} (of {len(compared)} compared; by chance alone about {chance:.1f} "
        "would be)"
    )


def _why_none_is_told(rows: Sequence[Confirmation], reference: str) -> str:
    beside = called(reference)
    own = next((row for row in rows if reference in (row.arm, row.method)), None)
    if own is not None and all(row.number == own.number for row in rows):
        return f"nothing but {beside} was confirmed: there is no difference to tell"
    lacks = [] if own is not None else [beside]
    lacks += ["two seeds of each choice"] if any(len(row.values) < 2 for row in rows) else []
    takes = f": that takes {' and '.join(lacks)}" if lacks else " from these values"
    return f"no difference can be told{takes}"


def called(reference: str) -> str:
    """What the others are set beside, as a reader is told."""
    return "tuned LoRA" if reference == "lora" else reference
