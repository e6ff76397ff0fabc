"""Confirmation: the best choices retrained with other seeds and measured on test.

LoRA variants differ by little once the learning rate is tuned. The summary therefore sets each
method beside tuned LoRA with Welch's interval for the difference of two means, and says plainly
when the difference is within the noise.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from search.config.sweep import SweepConfig
from search.objective import Objective
from search.progress import Progress
from search.queries.comparison import Confirmation, summarize
from search.tracking.facts import now_ms, plan_counts
from search.tracking.journal import end_of_trial
from search.tracking.relay import Relay
from search.tracking.tracker import Tracker
from search.tuning.trial import job_name
from spaces.errors import JobError, TrackingError
from spaces.plan import Plan
from trainables.resident.jobs import Event, Started, TrialJob

if TYPE_CHECKING:
    from trainables.resident.groups import ResidentWorkers


logger = logging.getLogger(__name__)


def confirm_best(
    chosen: Sequence[Mapping[str, Any]],
    *,
    config: SweepConfig,
    plans: Sequence[Plan],
    workers: ResidentWorkers,
    relay: Relay,
    tracker: Tracker,
    sweep_run_id: str,
    view: Progress,
) -> list[Confirmation]:
    """Retrain each row of `chosen` (best first) with `confirm.seeds` seeds; every run is logged.

    A run that fails is told and left out; a choice without any value is left out of the summary. A
    run that an earlier launch of the sweep has ended is not done again, where the journal or MLflow
    has it; nor is one for a choice that another row stands for too: rows of one trial's number are
    the same training.
    """
    assert config.confirm is not None
    seeds = [config.train.seed + 1 + i for i in range(config.confirm.seeds)]
    once: dict[int, tuple[Mapping[str, Any], Plan]] = {}
    for row, plan in zip(chosen, plans, strict=True):
        once.setdefault(row["number"], (row, plan))
    jobs = [(row, plan, seed) for row, plan in once.values() for seed in seeds]
    known = {**_logged(tracker, sweep_run_id, config.task.metric), **relay.journal.confirmed()}
    left = sum((row["number"], seed) not in known for row, _, seed in jobs)
    view.stage("confirm", f"{len(once)} choices x {len(seeds)} seeds on test", left)
    done = 0

    def run(job: tuple[Mapping[str, Any], Plan, int]) -> float | None:
        nonlocal done
        row, plan, seed = job
        value = known.get((row["number"], seed))
        if value is None:
            value = _run_one(row, plan, seed, config, workers, relay, view)
        done += 1
        shown = "failed" if value is None else f"{config.task.metric} {value:.4f}"
        view.message(f"confirm {done}/{len(jobs)}: {row['arm']} seed {seed}: {shown}")
        return value

    values: dict[int, tuple[float, ...]] = dict.fromkeys(once, ())
    with ThreadPoolExecutor(max_workers=config.cluster.groups + 1) as pool:
        for (row, _, _), value in zip(jobs, pool.map(run, jobs), strict=True):
            values[row["number"]] += () if value is None else (value,)
    found = [(row, values[row["number"]]) for row in chosen]
    return summarize(found, Objective(config.task.metric, config.search.mode))


def _logged(tracker: Tracker, sweep_run_id: str, metric: str) -> dict[tuple[int, int], float]:
    """(trial number, seed) -> test metric of the confirmation runs that MLflow already has."""
    try:
        runs = tracker.children(sweep_run_id)
    except TrackingError as error:
        logger.warning("earlier confirmation runs are not looked up: %s", error)
        return {}
    name = f"test_{metric}"
    return {
        (run.number, run.seed): run.metrics[name]
        for run in runs
        if run.kind == "confirm" and run.status == "complete" and name in run.metrics
        if run.number is not None and run.seed is not None
    }


def _run_one(
    row: Mapping[str, Any],
    plan: Plan,
    seed: int,
    config: SweepConfig,
    workers: ResidentWorkers,
    relay: Relay,
    view: Progress,
) -> float | None:
    choice, metric, journal = row["choice"], config.task.metric, relay.journal
    run = journal.new_confirmation()
    relay.keep_plan(run, plan)
    body: dict[str, Any] = {
        "kind": "confirm",
        "number": row["number"],
        "choice": choice,
        "tags": {"seed": seed, "arm": row["arm"], "plan_digest": plan.digest},
        "metrics": plan_counts(plan),
    }
    relay.append(partial(journal.start, run, body, now_ms(), (row["number"], seed)))
    state, error_text = "complete", None
    metrics: Mapping[str, float] = {}

    def begun(event: Event) -> None:
        if isinstance(event, Started):
            view.trial_started(row["number"], row["arm"], plan.trainable_params, seed)

    try:
        job = TrialJob(
            job_id=job_name(row["number"], seed),
            plan=plan.to_bytes(),
            learning_rate=choice["learning_rate"],
            seed=seed,
            train=config.train,
            split="test",
        )
        metrics = workers.run(job, on_event=begun).metrics
    except JobError as error:
        state, error_text = "failed", str(error)
        logger.warning("confirmation of trial %s, seed %s: %s", row["number"], seed, error)
    view.trial_finished(row["number"], state, None, seed)
    if metrics:
        body = {"metrics": _on_test(metrics, metric)}
        epochs = config.train.epochs * plan.length
        relay.append(partial(journal.epoch, run, epochs, body, now_ms()))
    value = float(metrics[metric]) if metrics else None
    end = end_of_trial(state, error_text, {})
    relay.append(partial(journal.end, run, end, now_ms(), value))
    return value


def _on_test(metrics: Mapping[str, float], metric: str) -> dict[str, float]:
    """The metric under a name that says it is not the dev metric of a trial."""
    return {f"test_{k}" if k == metric else k: float(v) for k, v in metrics.items()}
