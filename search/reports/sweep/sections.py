"""The sections of a sweep's page, in the order in which a reader asks."""

from __future__ import annotations

from collections.abc import Sequence

from search.queries.sweep_record import SweepRecord
from search.reports.page import Section
from search.reports.panel import Absent, Panel
from search.reports.sweep.beside import beside_panel
from search.reports.sweep.choices import choices_panel
from search.reports.sweep.curves import curves_panel
from search.reports.sweep.hours import hours_panel
from search.reports.sweep.importance import importance_panel
from search.reports.sweep.over_time import over_time_panel
from search.reports.sweep.pareto import pareto_panel


def sections_of(record: SweepRecord, papers: Sequence[Panel | Absent] = ()) -> list[Section]:
    """All of them; `papers` are the figures that the methods' papers have."""
    found = [
        Section("result", "What came out", [pareto_panel(record), beside_panel(record)]),
        Section(
            "search",
            "What was tried",
            [
                choices_panel(record),
                curves_panel(record),
                importance_panel(record),
                over_time_panel(record),
            ],
        ),
        Section("cost", "What it cost", [hours_panel(record)]),
    ]
    if papers:
        found.append(Section("papers", "The papers' figures", list(papers)))
    return found
