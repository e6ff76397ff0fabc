"""The comparison of a sweep's methods on test, read back from MLflow alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from search.confirm import Confirmation, summarize
from search.queries import experiment_names
from search.tracking import PREFIX, call, connect, search_runs
from spaces.errors import RanksweepError, UsageError, nearest

if TYPE_CHECKING:
    from mlflow.entities import Run


_log = logging.getLogger(__name__)


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
