"""lm-eval's scores of a sweep, as its runs in MLflow have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.tracking.runs import RecordedRuns
from trainables.training.lm_eval_settings import SCORE_PREFIX, LmEvalSettings


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


def settings_tags(settings: LmEvalSettings) -> dict[str, Any]:
    """The tags of a run that has scores: what was asked for, and what tells it from other."""
    return {"lm_eval": settings.of_scores, "lm_eval_digest": settings.digest}


def base_scores(
    recorded: RecordedRuns, experiment_id: str, sweep_run_id: str, digest: str | None
) -> dict[str, float]:
    """The scores of the sweep's untouched base by settings of this digest; none where it has none.

    Raises TrackingError where MLflow cannot be read.
    """
    if digest is None:
        return {}
    tags = {"kind": "base", "status": "complete", "lm_eval_digest": digest}
    runs = recorded.search(tags, [experiment_id], sweep_run_id)
    return scores_of(runs[0].metrics) if runs else {}
