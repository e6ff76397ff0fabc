"""What a sweep leaves out is filled in from what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainables.settings import Settings
from trainables.tasks.metrics import METRICS
from trainables.tasks.settings import TaskSettings

NULLABLE = ("space", "confirm")
"""Sections in which a null means something of its own."""


def fill_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that depend on other keys; a null there counts as not given."""
    raw = {key: value for key, value in raw.items() if value is not None or key in NULLABLE}
    task = raw.get("task")
    name, metric = None, None
    if isinstance(task, TaskSettings):
        name, metric = task.name, task.metric
    elif isinstance(task, Mapping):
        name, metric = task.get("name"), task.get("metric", "accuracy")
    if isinstance(name, str):
        raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "sweep")
        tracking = raw.get("tracking", {})
        if isinstance(tracking, Mapping):
            given = {key: value for key, value in tracking.items() if value is not None}
            raw["tracking"] = {"experiment": name, **given}
    if not isinstance(raw.get("search", {}), Settings):
        raw["search"] = _fill_search(raw.get("search", {}), metric)
    if "confirm" not in raw and isinstance(task, Mapping) and not _has_test(task):
        raw["confirm"] = None
    return raw


def _fill_search(search: Any, task_metric: Any) -> Any:
    if not isinstance(search, Mapping):
        return search
    given = dict(search)
    if "scheduler" in given and given["scheduler"] is None:
        given["scheduler"] = {"name": "none"}
    elif isinstance(given.get("scheduler"), str):
        given["scheduler"] = {"name": given["scheduler"]}
    given = {key: value for key, value in given.items() if value is not None}
    objectives = given.get("objectives")
    if isinstance(objectives, str):
        given["objectives"] = objectives = [objectives]
    first = objectives[0] if isinstance(objectives, list | tuple) and objectives else None
    metric = given.setdefault("metric", first or task_metric)
    if metric is None:
        del given["metric"]
    elif isinstance(metric, str):
        given.setdefault("objectives", [metric])
        if metric in METRICS:
            given.setdefault("mode", METRICS[metric].mode)
    if isinstance(objectives, list | tuple) and len(objectives) > 1:
        given.setdefault("scheduler", {"name": "none"})
    return given


def _has_test(task: Mapping[str, Any]) -> bool:
    """Whether the task will have a test split, as far as its settings tell."""
    data = task.get("data")
    if not isinstance(data, Mapping):
        return True
    if data.get("test") is not None:
        return True
    return data.get("hub") is not None and data.get("dev") is None
