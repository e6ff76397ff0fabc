"""The histories of one metric over many runs, in as few calls as what is asked has."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from search.tracking.facts import Point
from search.tracking.mlflow import call, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

_RUNS_AT_ONCE = 100  # as many as a server takes
_POINTS_AT_ONCE = 25_000  # as many as it gives
_CALLS_AT_ONCE = 8
_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


def histories(
    client: MlflowClient, uri: str, run_ids: Sequence[str], key: str, patience: float
) -> dict[str, list[Point]]:
    """Run id -> the points of a metric by step, of equal ones the last; runs without any are left
    out, and so are values that are no finite number.

    A database and MLflow's own server are asked for many runs at once; where that cannot be had,
    for one after another.
    """
    shares = [run_ids[at : at + _RUNS_AT_ONCE] for at in range(0, len(run_ids), _RUNS_AT_ONCE)]
    is_local = sqlite_file(uri) is not None  # which one thread reads as fast as several
    with ThreadPoolExecutor(max_workers=1 if is_local else _CALLS_AT_ONCE) as pool:
        found = pool.map(partial(_of_share, client, uri, key, patience), shares)
        return {run_id: points for share in found for run_id, points in share.items() if points}


def _of_share(
    client: MlflowClient, uri: str, key: str, patience: float, run_ids: Sequence[str]
) -> dict[str, list[Point]]:
    every = call(uri, partial(_in_bulk, client, key, run_ids), patience)
    if every is None:
        return {
            run_id: _points(call(uri, partial(client.get_metric_history, run_id, key), patience))
            for run_id in run_ids
        }
    by_run: dict[str, list[Metric]] = {}
    for run_id, metric in every:
        by_run.setdefault(run_id, []).append(metric)
    return {run_id: _points(metrics) for run_id, metrics in by_run.items()}


def _in_bulk(
    client: MlflowClient, key: str, run_ids: Sequence[str]
) -> list[tuple[str, Metric]] | None:
    """Every point of several runs; None where only one run can be asked for, or they are many."""
    from mlflow.entities import Metric

    # MLflow's client has no call for it; its database and its server have one.
    store: Any = client._tracking_client.store
    if hasattr(store, "get_metric_history_bulk"):
        of_database = store.get_metric_history_bulk(list(run_ids), key, _POINTS_AT_ONCE)
        found = [(each.run_id, each) for each in of_database]
    elif hasattr(store, "get_host_creds"):
        from mlflow.utils.rest_utils import http_request

        asked = [("run_id", run_id) for run_id in run_ids]
        answer = http_request(
            store.get_host_creds(),
            _BULK,
            "GET",
            params=[*asked, ("metric_key", key), ("max_results", _POINTS_AT_ONCE)],
            raise_on_status=False,
        )
        if answer.status_code != 200:  # no such call there
            return None
        found = [
            (each["run_id"], Metric(key, each["value"], each["timestamp"], each["step"]))
            for each in answer.json()["metrics"]
        ]
    else:
        return None
    return found if len(found) < _POINTS_AT_ONCE else None


def _points(metrics: Iterable[Any]) -> list[Point]:
    by_step = {
        each.step: Point(each.key, float(each.value), each.step, each.timestamp)
        for each in sorted(metrics, key=lambda each: (each.step, each.timestamp))
        if math.isfinite(float(each.value)) and abs(float(each.value)) < sys.float_info.max
    }
    return [by_step[step] for step in sorted(by_step)]
