"""The report of a task, over all its sweeps and bases."""

from __future__ import annotations

from pathlib import Path

from search.queries.history import Step
from search.redaction import redacted
from search.reports.page import How, Section
from search.reports.task.answer import answer_of
from search.reports.task.bases import bases_panel, front_panel
from search.reports.task.cost import sweeps_panel
from search.reports.task.history import history_panels
from search.reports.task.methods import gap_panel, wins_panel
from search.reports.task.record import TaskRecord, called, task_record
from search.reports.write import WrittenReport, check_out, write_pages


def write_task_report(tracking_uri: str, task: str, out: Path) -> WrittenReport:
    """Write the report of a task, as MLflow has it; an earlier one in the folder is replaced.

    Raises RanksweepError where MLflow has no sweep of the task, ConfigError where `out` may not be
    written to, TrackingError where MLflow cannot be read.
    """
    record = task_record(tracking_uri, task)
    check_out(out)
    return write_pages(
        record.task,
        answer_of(record),
        sections_of(record),
        how_of(record),
        out,
        kicker="ranksweep · a task over all its sweeps",
    )


def sections_of(record: TaskRecord) -> list[Section]:
    """All of them, in the order in which a reader asks."""
    return [
        Section("history", "How the best moved", history_panels(record)),
        Section("bases", "Bases side by side", [bases_panel(record), front_panel(record)]),
        Section("methods", "Methods over sweeps", [wins_panel(record), gap_panel(record)]),
        Section("cost", "The sweeps", [sweeps_panel(record)]),
    ]


def how_of(record: TaskRecord) -> list[How]:
    """What was read, and which data and bases there are."""
    found = [
        How(
            "What was read",
            rows=[("task", record.task), ("tracking", redacted(record.tracking_uri))],
        )
    ]
    bases: dict[str, Step] = {called(step): step for step in record.steps}
    if bases:
        found.append(
            How(
                "Bases, with their fingerprints",
                rows=[(name, f"{step.base_uri} {step.base}") for name, step in bases.items()],
            )
        )
    data: dict[str, list[str]] = {}
    for step in record.steps:
        data.setdefault(step.data or "unnamed", []).append(step.sweep)
    if data:
        found.append(
            How(
                "Data, by fingerprint",
                rows=[(key[:12], f"{', '.join(of)}; {key}") for key, of in data.items()],
            )
        )
    return found
