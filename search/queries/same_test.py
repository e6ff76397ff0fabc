"""Whether sweeps were measured on the same test rows, by the same rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from search.config.yaml_file import parse_yaml
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from trainables.tasks.measured_rows import MeasuredRows, SuiteRows

SWEEP, TASK = "sweep.yaml", "task.json"
"""Artifacts of a sweep: its file, and what a launch told of its rows."""
_MEASURED_BY = ("kind", "metric", "positive_class", "extract", "generation", "label_form")
"""Keys of a task that decide what a value on given rows means."""


def told_of_rows(recorded: RecordedRuns, sweep_run: str | None) -> Mapping[str, Any]:
    """What the launch of a sweep told of its rows; nothing where that is not kept."""
    if sweep_run is None or TASK not in recorded.files(sweep_run):
        return {}
    told = json.loads(recorded.artifact(sweep_run, TASK))
    return told if isinstance(told, Mapping) else {}


def same_test(
    recorded: RecordedRuns, one: tuple[str | None, RunFacts], other: tuple[str | None, RunFacts]
) -> Mapping[str, str] | None:
    """Split -> what names its rows, where both were measured on the same ones alike; else None.

    Each is the run id of a sweep, and a run of it. Older sweeps name their rows as a whole alone,
    with those that train: then nothing of them may differ.
    """
    ours, theirs = (_test_rows(recorded, sweep_run) for sweep_run, _ in (one, other))
    if ours is not None and theirs is not None:
        alike = ours == theirs and _rule(recorded, one[0]) == _rule(recorded, other[0])
        return ours if alike else None
    a, b = (run.task_fingerprint for _, run in (one, other))
    return {} if a is not None and a == b else None


def _test_rows(recorded: RecordedRuns, sweep_run: str | None) -> dict[str, str] | None:
    """What names the rows of test, of a suite those of each member as `<member>/test`."""
    names = told_of_rows(recorded, sweep_run).get("row_fingerprints")
    if not isinstance(names, Mapping):
        return None
    return {
        split: str(name)
        for split, name in names.items()
        if split == "test" or split.endswith("/test")
    }


def _rule(recorded: RecordedRuns, sweep_run: str | None) -> Any:
    text = recorded.artifact(str(sweep_run), SWEEP).decode()
    section = parse_yaml(text, f"{sweep_run}/{SWEEP}").get("task", {})
    members = section.get("suite") or ()
    return [{key: each.get(key) for key in _MEASURED_BY} for each in (section, *members)]


def named_alike(rows: MeasuredRows, data: Mapping[str, str]) -> MeasuredRows:
    """The rows under the name of their test rows alone, not of all that their task has: those of
    two sweeps that trained on others are the same."""
    if not data:
        return rows
    if isinstance(rows, SuiteRows):
        members = {
            name: replace(each, rows=data.get(f"{name}/test", each.rows))
            for name, each in rows.members.items()
        }
        return replace(rows, rows="", members=members)
    return replace(rows, rows=data.get("test", rows.rows))
