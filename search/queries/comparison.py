"""The comparison of a sweep's methods on test, read back from MLflow alone."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from search.tracking.facts import PREFIX
from search.tracking.mlflow import call, connect, experiment_names, search_runs
from spaces.errors import RanksweepError, UsageError, nearest

if TYPE_CHECKING:
    from mlflow.entities import Run


_log = logging.getLogger(__name__)
CONFIDENCE = 0.95


def compare(tracking_uri: str, sweep: str, against: str = "lora") -> list[Confirmation]:
    """The confirmed choices of a sweep, best mean first; `sweep` is its name or its run id.

    `against` is the arm or method that the others are set beside. Of several sweeps of one name the
    newest is taken; one that still runs is compared as far as it is, with a warning. Raises
    RanksweepError where there is no such sweep or nothing of it was confirmed, TrackingError where
    MLflow cannot be read.
    """
    client = connect(tracking_uri, must_exist=True)
    experiments = list(experiment_names(client, tracking_uri))
    found = search_runs(client, tracking_uri, experiments, {"kind": "sweep"})
    ours = [run for run in found if sweep in (run.info.run_id, run.data.tags.get(PREFIX + "sweep"))]
    if not ours:
        names = sorted({run.data.tags.get(PREFIX + "sweep", "") for run in found})
        raise RanksweepError(
            f"{sweep}: no sweep of this name or run id in MLflow; it has "
            f"{', '.join(names[:10]) or 'none'}"
        )
    newest = ours[0]
    children = call(
        tracking_uri,
        partial(
            search_runs,
            client,
            tracking_uri,
            [newest.info.experiment_id],
            {"status": "complete"},
            newest.info.run_id,
        ),
    )
    tags = newest.data.tags
    if tags.get(PREFIX + "status") == "running":
        _log.warning("%s still runs, or was killed: what it has not confirmed is missing", sweep)
    metric, mode = tags.get(PREFIX + "metric", "accuracy"), tags.get(PREFIX + "mode", "max")
    confirmed = [run for run in children if _kind(run) == "confirm"]
    if not confirmed:
        raise RanksweepError(
            f"{sweep}: nothing of it was confirmed on test; set `confirm` in the sweep and launch "
            "it with --resume"
        )
    dev = {_number(run): run.data.metrics.get(metric) for run in children if _kind(run) == "trial"}
    choices = _choices(confirmed, metric, mode, dev)
    arms = {str(row["arm"]) for row, _ in choices} | {str(row["method"]) for row, _ in choices}
    if against != "lora" and against not in arms:
        raise UsageError(f"--against: {against!r} was not confirmed; {nearest(against, arms)}")
    return summarize(choices, metric, mode, against)


def _choices(
    confirmed: Sequence[Run], metric: str, mode: str, dev: dict[int, float | None]
) -> list[tuple[dict[str, object], tuple[float, ...]]]:
    """(method, number, choice and size; test values by seed) of each choice, best on dev first."""
    runs: dict[int, dict[int, Run]] = {}
    for run in confirmed:
        if f"test_{metric}" in run.data.metrics:
            seed = int(run.data.tags[PREFIX + "seed"])
            runs.setdefault(_number(run), {}).setdefault(seed, run)
    sign = -1.0 if mode == "max" else 1.0

    def rank(number: int) -> tuple[float, int]:
        value = dev.get(number)
        return (float("inf") if value is None else sign * value), number

    rows = []
    for number in sorted(runs, key=rank):
        by_seed = [runs[number][seed] for seed in sorted(runs[number])]
        tags = by_seed[0].data.tags
        row = {
            "method": tags[PREFIX + "method"],
            "arm": tags.get(PREFIX + "arm", tags[PREFIX + "method"]),
            "number": number,
            "choice": json.loads(tags[PREFIX + "choice"]),
            "trainable_params": int(by_seed[0].data.metrics["trainable_params"]),
        }
        rows.append((row, tuple(float(run.data.metrics[f"test_{metric}"]) for run in by_seed)))
    return rows


def _kind(run: Run) -> str | None:
    kind: str | None = run.data.tags.get(PREFIX + "kind")
    return kind


def _number(run: Run) -> int:
    return int(run.data.tags[PREFIX + "number"])


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
    metric: str,
    mode: str,
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
        _summary(row, values, () if row["number"] == number else beside, metric)
        for row, values in found
        if values
    ]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(summary, key=lambda each: sign * each.mean)


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
    from scipy.stats import ttest_ind

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
        return f"no difference can be told: that takes {beside} and two seeds of each choice"
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


def called(reference: str) -> str:
    """What the others are set beside, as a reader is told."""
    return "tuned LoRA" if reference == "lora" else reference
