"""How a sweep was run: what would be needed to run it again, and what became of its trials."""

from __future__ import annotations

import json
from collections import Counter

import yaml

from search.queries.sweep_record import SweepRecord
from search.reports.page import How
from search.reports.sweep.measured import arm_of
from search.wording import moment

MOST_REASONS = 20


def how_of(record: SweepRecord) -> list[How]:
    """Facts, states, reasons of failures and the sweep's file."""
    run = record.run
    facts = [
        ("sweep", run.sweep),
        ("run in MLflow", run.run_id),
        ("task", run.task),
        ("base", run.base_uri),
        ("base, fingerprint", run.base),
        ("data, fingerprint", run.data_fingerprint or run.task_fingerprint or ""),
        ("profile", run.profile_key or ""),
        ("commit", run.git_commit or ""),
        ("launched on", run.host or ""),
        ("schedule", run.scheduled_by or ""),
        ("began", moment(run.started_ms)),
        ("ended", moment(run.ended_ms)),
        ("search ended by", " ".join(filter(None, [run.ended_by, run.reason]))),
        ("error", run.error or ""),
    ]
    found = [How("Where and when", rows=[each for each in facts if each[1] not in ("", "-")])]
    rows = record.told.get("rows")
    if isinstance(rows, dict):
        found.append(How("Rows", rows=[(str(k), f"{v:,}") for k, v in rows.items()]))
    if versions := _versions(run.versions):
        found.append(How("Versions", rows=sorted(versions.items())))
    found.append(How("Trials by state", rows=_states(record)))
    if reasons := _reasons(record):
        found.append(How("Why trials ended early", rows=reasons))
    if record.comparison is not None and record.comparison.fallen:
        text = "\n".join(record.comparison.fallen)
        found.append(How("Choices that do not hold", text=text))
    if record.config:
        text = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True)
        found.append(How("The sweep file, as it was launched", text=text, is_long=True))
    return found


def _versions(text: str | None) -> dict[str, str]:
    try:
        read = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in read.items()} if isinstance(read, dict) else {}


def _states(record: SweepRecord) -> list[tuple[str, str]]:
    counts: dict[str, Counter[str]] = {}
    for run in record.trials:
        counts.setdefault(arm_of(run), Counter())[run.status or "running"] += 1
    return [
        (arm, ", ".join(f"{number:,} {state}" for state, number in sorted(states.items())))
        for arm, states in counts.items()
    ]


def _reasons(record: SweepRecord) -> list[tuple[str, str]]:
    """The first of them, alike ones together."""
    trials: dict[str, list[str]] = {}
    for run in record.trials:
        if run.error and run.status != "complete":
            trials.setdefault(f"{run.status}: {run.error}", []).append(str(run.number))
    shown = []
    for reason, numbers in list(trials.items())[:MOST_REASONS]:
        more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
        shown.append((f"trial {', '.join(numbers[:8])}{more}", reason))
    return shown
