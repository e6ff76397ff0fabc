"""Confirmation: the best choices retrained with other seeds and measured on test.

LoRA variants differ by little once the learning rate is tuned. The summary therefore sets each
method beside tuned LoRA with Welch's interval for the difference of two means, and says plainly
when the difference is within the noise.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spaces.errors import JobError, TrackingError
from spaces.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table

    from search.config import SweepConfig
    from search.live import View
    from search.tracking import Tracker
    from trainables.resident import ResidentWorkers

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95


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

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)


def confirm_best(
    chosen: Sequence[Mapping[str, Any]],
    *,
    config: SweepConfig,
    plans: Sequence[Plan],
    workers: ResidentWorkers,
    tracker: Tracker,
    sweep_run_id: str,
    view: View,
) -> list[Confirmation]:
    """Retrain each row of `chosen` (best first) with `confirm.seeds` seeds; every run is logged.

    A run that fails is told and left out; a choice without any value is left out of the summary. A
    run that an earlier launch of the sweep has logged is not done again, nor is one for a choice
    that another row stands for too: rows of one trial's number are the same training.
    """
    assert config.confirm is not None
    seeds = [config.train.seed + 1 + i for i in range(config.confirm.seeds)]
    once: dict[int, tuple[Mapping[str, Any], Plan]] = {}
    for row, plan in zip(chosen, plans, strict=True):
        once.setdefault(row["number"], (row, plan))
    jobs = [(row, plan, seed) for row, plan in once.values() for seed in seeds]
    view.stage("confirm", f"{len(once)} choices x {len(seeds)} seeds on test")
    known = _logged(tracker, sweep_run_id, config.task.metric)
    done = 0

    def run(job: tuple[Mapping[str, Any], Plan, int]) -> float | None:
        nonlocal done
        row, plan, seed = job
        value = known.get((row["number"], seed))
        if value is None:
            value = _run_one(row, plan, seed, config, workers, tracker, sweep_run_id)
        done += 1
        shown = "failed" if value is None else f"{config.task.metric} {value:.4f}"
        view.message(f"confirm {done}/{len(jobs)}: {row['arm']} seed {seed}: {shown}")
        return value

    values: dict[int, tuple[float, ...]] = dict.fromkeys(once, ())
    with ThreadPoolExecutor(max_workers=config.cluster.groups + 1) as pool:
        for (row, _, _), value in zip(jobs, pool.map(run, jobs), strict=True):
            values[row["number"]] += () if value is None else (value,)
    found = [(row, values[row["number"]]) for row in chosen]
    return summarize(found, config.task.metric, config.search.mode)


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


def _logged(tracker: Tracker, sweep_run_id: str, metric: str) -> dict[tuple[int, int], float]:
    """(trial number, seed) -> test metric of the confirmation runs that MLflow already has."""
    try:
        children = tracker.children(sweep_run_id)
    except TrackingError as error:
        logger.warning("earlier confirmation runs are not looked up: %s", error)
        return {}
    return {
        (int(run.data.tags["ranksweep.number"]), int(run.data.tags["ranksweep.seed"])): float(
            run.data.metrics[f"test_{metric}"]
        )
        for run in children
        if run.data.tags.get("ranksweep.kind") == "confirm"
        and run.data.tags.get("ranksweep.status") == "complete"
        and f"test_{metric}" in run.data.metrics
    }


def _run_one(
    row: Mapping[str, Any],
    plan: Plan,
    seed: int,
    config: SweepConfig,
    workers: ResidentWorkers,
    tracker: Tracker,
    sweep_run_id: str,
) -> float | None:
    choice, metric = row["choice"], config.task.metric
    run_id = None
    try:
        run_id = tracker.start_trial(
            sweep_run_id,
            row["number"],
            choice,
            plan,
            {"seed": seed, "arm": row["arm"]},
            kind="confirm",
        )
    except TrackingError as error:
        logger.warning("a confirmation run is not logged: %s", error)
    state, error_text, metrics = "complete", None, {}
    try:
        answer = workers.run(
            {
                "kind": "trial",
                "plan": plan.to_bytes(),
                "learning_rate": choice["learning_rate"],
                "seed": seed,
                "train": config.train.model_dump(mode="json"),
                "split": "test",
            }
        )
        metrics = answer["metrics"]
    except JobError as error:
        state, error_text = "failed", str(error)
        logger.warning("confirmation of trial %s, seed %s: %s", row["number"], seed, error)
    if run_id is not None:
        try:
            tracker.log_epoch(run_id, config.train.epochs, _on_test(metrics, metric))
            tracker.finish_trial(run_id, state, error=error_text)  # type: ignore[arg-type]
        except TrackingError as error:
            logger.warning("a confirmation run is not logged: %s", error)
    return float(metrics[metric]) if metrics else None


def _on_test(metrics: Mapping[str, float], metric: str) -> dict[str, float]:
    """The metric under a name that says it is not the dev metric of a trial."""
    return {f"test_{k}" if k == metric else k: v for k, v in metrics.items()}


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


def verdict(rows: Sequence[Mapping[str, Any]], reference: str = "lora") -> str:
    """One sentence on what the confirmations show of the methods beside the reference."""
    beside = _called(reference)
    compared = [row for row in rows if row["difference"] is not None]
    if not compared:
        return f"no difference can be told: that takes {beside} and two seeds of each choice"
    above = [row["arm"] for row in compared if row["difference"][0] > 0]
    below = [row["arm"] for row in compared if row["difference"][1] < 0]
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


def _called(reference: str) -> str:
    """What the others are set beside, as a reader is told."""
    return "tuned LoRA" if reference == "lora" else reference


def confirmation_table(rows: Sequence[Mapping[str, Any]], reference: str = "lora") -> Table:
    """The confirmations as a table: mean, deviation, parameters, difference from the reference."""
    from rich.table import Table

    metric = rows[0]["metric"] if rows else "metric"
    table = Table(title=f"confirmed on test ({metric})", title_justify="left")
    beside = _called(reference)
    for name in ("method", "mean", "deviation", "seeds", "params", f"minus {beside} (95%)"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        if row["difference"] is None:
            shown = "-"
        else:
            low, high = row["difference"]
            noise = ", within the noise" if row["within_noise"] else ""
            shown = f"{low:+.4f} to {high:+.4f}{noise}"
        table.add_row(
            row["arm"],
            f"{row['mean']:.4f}",
            "-" if row["deviation"] is None else f"{row['deviation']:.4f}",
            str(len(row["values"])),
            f"{row['trainable_params']:,}",
            shown,
        )
    return table
