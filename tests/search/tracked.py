"""The run of a trial written step by step, without the journal that a launch has between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.tracking.facts import at_step, flattened, plan_counts
from search.tracking.tracker import Tracker
from spaces.plan import Plan


def start_trial(
    tracker: Tracker,
    sweep_run_id: str,
    number: int,
    choice: Mapping[str, Any],
    plan: Plan | None = None,
    tags: Mapping[str, Any] | None = None,
    kind: str = "trial",
) -> str:
    """Open the run of a trial with all that its start says; returns its run id."""
    own = dict(tags or {}) | ({} if plan is None else {"plan_digest": plan.digest})
    run_id = tracker.open_trial(sweep_run_id, number, choice, own, kind=kind)
    counts = {} if plan is None else plan_counts(plan)
    tracker.log(run_id, params=flattened(choice), metrics=at_step(counts, 0))
    tracker.log_plan(run_id, sweep_run_id, choice, plan)
    return run_id


def log_epoch(tracker: Tracker, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
    """Log what an epoch has measured."""
    tracker.log(run_id, metrics=at_step(metrics, epoch), tags={"epoch": epoch})
