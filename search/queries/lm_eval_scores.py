"""lm-eval's scores of a sweep, as its runs in MLflow have them."""

from __future__ import annotations

from collections.abc import Mapping

from search.tracking.runs import RecordedRuns
from trainables.training.lm_eval_settings import SCORE_PREFIX


def scores_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those among a run's metrics that are of lm-eval, such as `piqa/acc`."""
    return {
        name.removeprefix(SCORE_PREFIX): float(value)
        for name, value in sorted(metrics.items())
        if name.startswith(SCORE_PREFIX)
    }


def as_metrics(scores: Mapping[str, float]) -> dict[str, float]:
    """The same scores under their names in MLflow."""
    return {f"{SCORE_PREFIX}{name}": value for name, value in scores.items()}


def base_scores(recorded: RecordedRuns, experiment_id: str, sweep_run_id: str) -> dict[str, float]:
    """The scores of the sweep's untouched base; none where it was not measured.

    Raises TrackingError where MLflow cannot be read.
    """
    runs = recorded.search({"kind": "base", "status": "complete"}, [experiment_id], sweep_run_id)
    return scores_of(runs[0].metrics) if runs else {}
