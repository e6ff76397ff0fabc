"""Confirmation: the best choices retrained with other seeds and measured on test.

LoRA variants differ by little once the learning rate is tuned. The summary therefore sets each
method beside tuned LoRA with Welch's interval for the difference of two means, and says plainly
when the difference is within the noise.
"""

from __future__ import annotations

import logging
import math
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

    `deviation` is the sample standard deviation (None of a single value). `difference` is
    [low, high], Welch's 95% interval of mean minus LoRA's mean; None for LoRA itself and where
    either has fewer than two values. `within_noise` says whether it holds zero.
    """

    method: str
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
    run that an earlier launch of the sweep has logged is not done again.
    """
    assert config.confirm is not None
    seeds = [config.train.seed + 1 + i for i in range(config.confirm.seeds)]
    jobs = [(row, plan, seed) for row, plan in zip(chosen, plans, strict=True) for seed in seeds]
    view.stage("confirm", f"{len(chosen)} choices x {len(seeds)} seeds on test")
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
        view.message(f"confirm {done}/{len(jobs)}: {row['method']} seed {seed}: {shown}")
        return value

    with ThreadPoolExecutor(max_workers=config.cluster.groups + 1) as pool:
        values = list(pool.map(run, jobs))
    found = {
        i: tuple(v for v in values[i * len(seeds) : (i + 1) * len(seeds)] if v is not None)
        for i in range(len(chosen))
    }
    lora = next(
        (found[i] for i, row in enumerate(chosen) if row["method"] == "lora" and found[i]), ()
    )
    summary = [
        _summary(row, found[i], lora, config.task.metric)
        for i, row in enumerate(chosen)
        if found[i]
    ]
    sign = -1.0 if config.search.mode == "max" else 1.0
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
            sweep_run_id, row["number"], choice, plan, {"seed": seed}, kind="confirm"
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
    row: Mapping[str, Any], values: tuple[float, ...], lora: tuple[float, ...], metric: str
) -> Confirmation:
    difference = None if row["method"] == "lora" else welch_interval(values, lora)
    return Confirmation(
        method=row["method"],
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

    interval = ttest_ind(a, b, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def confirmation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The confirmations as a table: mean, deviation, parameters and the difference from LoRA."""
    from rich.table import Table

    metric = rows[0]["metric"] if rows else "metric"
    table = Table(title=f"confirmed on test ({metric})", title_justify="left")
    for name in ("method", "mean", "deviation", "seeds", "params", "minus tuned LoRA (95%)"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        if row["difference"] is None:
            verdict = "-"
        else:
            low, high = row["difference"]
            noise = ", within the noise" if row["within_noise"] else ""
            verdict = f"{low:+.4f} to {high:+.4f}{noise}"
        table.add_row(
            row["method"],
            f"{row['mean']:.4f}",
            "-" if row["deviation"] is None else f"{row['deviation']:.4f}",
            str(len(row["values"])),
            f"{row['trainable_params']:,}",
            verdict,
        )
    return table
