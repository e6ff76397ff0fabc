"""A report as one HTML file that opens from a folder, with no network."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from search.reports.panel import Absent, Cell, Panel
from search.reports.words import value

MOST_ROWS = 200
"""Rows of a table on the page; the CSV has all."""
ASKED = ("Searched", "Found", "Next")
"""What each sentence of an answer is about."""
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Command:
    """A command that can be given as it stands, and what it is for."""

    why: str
    line: str


@dataclass(frozen=True)
class KeyNumber:
    """A number that is looked for first, as it is written, and a few words on it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What a reader asks first: in three sentences what was searched, what won, and what to do
    next, by which commands; and the few numbers that matter."""

    sentences: Sequence[str]
    commands: Sequence[Command] = ()
    numbers: Sequence[KeyNumber] = ()


@dataclass(frozen=True)
class Section:
    """Figures that belong together; `key` is its place on the page."""

    key: str
    title: str
    panels: Sequence[Panel | Absent]


@dataclass(frozen=True)
class How:
    """A part of how it was run: names with what is told of them, or a text as it stands."""

    title: str
    rows: Sequence[tuple[str, str]] = ()
    text: str = ""
    is_long: bool = False
    """Whether it is shown when asked for alone."""


@dataclass(frozen=True)
class _Figure:
    """A panel as the template has it."""

    panel: Panel
    image: str
    brushed: Markup | None
    csv: Markup | None
    """All its numbers, where they are few."""
    table: Sequence[Sequence[str]] = field(default_factory=list)

    @property
    def is_absent(self) -> bool:
        return False

    @property
    def has_all_rows(self) -> bool:
        return len(self.panel.rows) <= MOST_ROWS


def page(
    title: str,
    answer: Answer,
    sections: Sequence[Section],
    how: Sequence[How] = (),
    *,
    images: Mapping[str, bytes],
    kicker: str = "ranksweep report",
    made_at: datetime | None = None,
) -> str:
    """The HTML of a report.

    `images` has the PNG of each panel by its key: it is shown where nothing is drawn, as on paper
    or without scripts. The figures that are brushed are drawn by Plotly, whose script is a part of
    the page. Links to `figures/KEY.png` and `data/KEY.csv` lead to files beside the page; without
    them the page gives its own image and table.
    """
    shown = [
        (section, [_figure(panel, images) for panel in section.panels]) for section in sections
    ]
    needs_plotly = any(
        isinstance(each, _Figure) and each.brushed is not None
        for _, figures in shown
        for each in figures
    )
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["zip_names"] = lambda sentences: zip(ASKED, sentences, strict=False)
    template = environment.from_string((_HERE / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        kicker=kicker,
        answer=answer,
        sections=shown,
        how=how,
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(packed_plotly()) if needs_plotly else "",
        most_rows=MOST_ROWS,
        version=_version(),
        made_at=(made_at or datetime.now().astimezone()).strftime("%Y-%m-%d %H:%M %Z"),
    )


def _figure(panel: Panel | Absent, images: Mapping[str, bytes]) -> _Figure | Absent:
    if isinstance(panel, Absent):
        return panel
    image = base64.b64encode(images[panel.key]).decode() if panel.key in images else ""
    brushed = None if panel.brushed is None else Markup(script_json(panel.brushed()))
    table = [[cell_text(cell) for cell in row] for row in panel.rows[:MOST_ROWS]]
    is_whole = len(panel.rows) <= MOST_ROWS
    return _Figure(
        panel, image, brushed, Markup(script_json(panel.as_csv())) if is_whole else None, table
    )


def cell_text(cell: Cell) -> str:
    """A cell of a table as it is read."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return value(cell) if isinstance(cell, float) else str(cell)


def script_json(held: Any) -> str:
    """What is held as JSON that may stand within an HTML script; NaN and infinity are null."""
    text = json.dumps(_finite(held), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _finite(each: Any) -> Any:
    if isinstance(each, float):
        return each if math.isfinite(each) else None
    if isinstance(each, Mapping):
        return {str(key): _finite(inner) for key, inner in each.items()}
    if isinstance(each, list | tuple):
        return [_finite(inner) for inner in each]
    return each.item() if hasattr(each, "item") else each


@cache
def packed_plotly() -> str:
    """Plotly's script, as the installed package has it: gzip, then base64."""
    found = find_spec("plotly")  # not imported: its script alone is needed
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0], "package_data", "plotly.min.js")
    return base64.b64encode(gzip.compress(file.read_bytes(), mtime=0)).decode()


def _version() -> str:
    try:
        return version("ranksweep")
    except PackageNotFoundError:
        return "(not installed)"
