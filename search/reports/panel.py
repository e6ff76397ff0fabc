"""One figure of a report: what it says, its numbers, and how it is drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Panel:
    """One figure of a report.

    `key` names its files and its place on the page, such as `pareto-front`. `says` is one or two
    sentences, with numbers, on what is to be seen: the text for who cannot see it. `columns` and
    `rows` are its numbers, one row a mark of the figure. `brushed` makes the figure as Plotly's
    JSON has it (`data` and `layout`; the page lays its own theme over it), None where nothing is
    gained by it; `printed` draws the same for paper. Both are called when the report is written.
    """

    key: str
    title: str
    says: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    printed: Callable[[], Figure]
    brushed: Callable[[], Mapping[str, Any]] | None = None

    def as_csv(self) -> str:
        """Its numbers as a CSV file has them, the columns' names first; None is an empty field."""
        written = io.StringIO()
        table = csv.writer(written, lineterminator="\n")
        table.writerow(self.columns)
        table.writerows(self.rows)
        return written.getvalue()


@dataclass(frozen=True)
class Absent:
    """A figure that a sweep has no numbers for, and why, in one line."""

    key: str
    title: str
    why: str
