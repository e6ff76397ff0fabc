"""One experiment of a paper, task by base, and the sweep that it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import numpy as np

from search.presets.tables import (
    Cell,
    DataSet,
    Notes,
    OfBase,
    Paper,
    PaperTable,
    Parts,
    Section,
    data_sets,
    papers,
)
from spaces.errors import UsageError, nearest

MOST_NAMED = 10
"""Names that an error still lists."""


@dataclass(frozen=True)
class Preset:
    """One cell of a table's rows and columns: a task on a base, by all of the table's methods."""

    paper_key: str
    paper: Paper
    table: PaperTable
    task_key: str
    base_key: str

    @property
    def name(self) -> str:
        """What the preset and its sweep are called: paper, table, task and base."""
        return f"{self.paper_key}-table{self.table.table}-{self.task}-{self.base_key}"

    @property
    def task(self) -> str:
        """The task as the name has it."""
        return self.data_set.called or self.task_key

    @property
    def kind(self) -> str:
        """The kind of the task."""
        return str(self.data_set.task["kind"])

    @property
    def data_set(self) -> DataSet:
        """Where the rows are, and how they are read."""
        return data_sets()[self.task_key]

    @property
    def base_uri(self) -> str:
        """The base as a sweep names it."""
        return self.paper.bases[self.base_key].uri

    @property
    def of_base(self) -> OfBase:
        """What the table has of the base."""
        return self.table.bases[self.base_key]

    @property
    def source(self) -> str:
        """Where the figures are printed."""
        return f"{self.paper.name}, Table {self.table.table}"

    @property
    def metric(self) -> str:
        """What is searched by, and what `figures` are of."""
        return str({**self.data_set.task, **self.table.task}["metric"])

    @property
    def figures(self) -> dict[str, float]:
        """Row of the table and its figure for the task, as printed."""
        parts = self.table.parts.get(self.task_key)
        return {
            row: _figure(cell, parts, self.of_base.average.get(row)) for row, cell in self._cells()
        }

    @property
    def columns(self) -> dict[str, dict[str, float]]:
        """What else the table prints for the task: set or metric -> row -> figure."""
        parts = self.table.parts.get(self.task_key)
        if parts is None:
            return {}
        return {
            name: {row: _several(cell)[place] for row, cell in self._cells()}
            for place, name in enumerate(parts.names)
            if name != parts.taken
        }

    def _cells(self) -> Iterator[tuple[str, Cell]]:
        place = self.table.tasks.index(self.task_key)
        for row, cells in self.of_base.figures.items():
            yield row, cells[place]

    def sweep(self) -> dict[str, Any]:
        """The sweep file as plain data: every section that the paper or the preset decides."""
        sections: dict[str, Any] = {"search": {"sampler": "grid", "scheduler": "none"}}
        of_task = self.table.of_task.get(self.task_key, {})
        for each in (self.table.sweep, self.of_base.sweep, of_task):
            sections = _merged(sections, each)
        task = {"name": self.task, **self.data_set.task, **self.table.task}
        published = {
            "source": self.source,
            "metric": self.metric,
            "unit": "percent",
            "figures": self.figures,
            **({"columns": self.columns} if self.columns else {}),
        }
        order = ("profile", "space", "search", "train", "cluster", "confirm")
        return {
            "name": self.name,
            "base": self.base_uri,
            "task": task,
            **{key: sections[key] for key in order},
            "published": published,
        }

    def document(self) -> dict[str, Any]:
        """The sweep, and what of each section the paper gives and what was chosen, as data."""
        sections = get_args(Section)
        return {
            "name": self.name,
            "source": self.source,
            "sweep": self.sweep(),
            "given": {key: told for key in sections if (told := self.given(key))},
            "chosen": {key: told for key in sections if (told := self.chosen(key))},
        }

    def given(self, section: Section) -> tuple[str, ...]:
        """What of a section the paper says."""
        return self.table.given.get(section, ())

    def chosen(self, section: Section) -> tuple[str, ...]:
        """What of a section the paper does not say, and was chosen."""
        own: Notes = {
            "base": self.paper.bases[self.base_key].chosen,
            "task": self.data_set.chosen,
            "search": (
                "each row of the table is trained once, at the paper's own values and to its end; "
                "a list or a range in place of a value, and another sampler, make it a search",
            ),
        }
        notes = (own, self.table.chosen, self.of_base.chosen)
        return tuple(remark for each in notes for remark in each.get(section, ()))


def _several(cell: Cell) -> Sequence[float]:
    return cell if isinstance(cell, tuple) else (cell,)


def _figure(cell: Cell, parts: Parts | None, average: float | None) -> float:
    """The one figure that stands for a cell."""
    values = _several(cell)
    if parts is None:
        return values[0]
    if parts.taken == "average" and average is not None:
        return average
    if parts.taken == "mean":
        return round(float(np.mean(values)), 4)
    return values[parts.names.index(parts.taken)]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; what stands in the second wins."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return merged


@cache
def presets() -> tuple[Preset, ...]:
    """Every preset, by paper, table, base and task."""
    return tuple(
        Preset(key, paper, table, task, base)
        for key, paper in papers().items()
        for table in paper.tables
        for base in table.bases
        for task in table.tasks
    )


def preset(name: str) -> Preset:
    """The preset of a name. Raises UsageError, which names the nearest, where there is none."""
    by_name = {each.name: each for each in presets()}
    if name not in by_name:
        raise UsageError(f"NAME: there is no preset {name[:80]!r}; {meant(name, by_name)}")
    return by_name[name]


def meant(word: str, known: Iterable[str]) -> str:
    """Which of the `known` an unknown `word` means, or where they are shown if they are many."""
    words = list(known)
    said = nearest(word, words)
    if len(words) <= MOST_NAMED or said.startswith("did"):
        return said
    return "`ranksweep presets list` shows them"
