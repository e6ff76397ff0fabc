"""A profile's figures on a terminal: tables with bars and shades, which need no colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from search.cli.output import add_row, share_text
from search.reports.profile_figures import JSON_BINS, ProfileReport
from spaces.methods.sensitivity import SensitivityChoice

WIDEST = 100  # characters; a longer line is hard to follow with the eye
LEAST_CELL, MOST_CELL = 7, 17
BAR = 30
SUM = "(sum)"
EIGHTHS = " ▏▎▍▌▋▊▉"
SHADES, ASCII_SHADES = "·░▒▓█", ".:+#@"
Cell = Callable[[str, str, int], str]
"""What stands in a layer's and a kind's place, in so many characters."""


@dataclass(frozen=True)
class ProfileView:
    """A report as Rich draws it: as wide as the terminal, in ASCII where that knows no more."""

    report: ProfileReport

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        page = _Page(self.report, min(options.max_width, WIDEST), options.ascii_only)
        for name, draw in (
            ("rank_budget", page.rank_budget),
            ("row_importance", page.row_importance),
            ("dominant_rows", page.dominant_rows),
        ):
            yield Text()
            if name in self.report.absent:
                yield f"{name.replace('_', ' ')}: not drawn: {self.report.absent[name]}"
            else:
                yield from draw()


@dataclass(frozen=True)
class _Page:
    """The figures in `width` columns."""

    report: ProfileReport
    width: int
    ascii_only: bool

    def rank_budget(self) -> Iterator[RenderableType]:
        report, ranks = self.report, self.report.ranks()
        yield Text(
            f"rank budget: {report.total_rank} ranks over {len(report.modules)} modules "
            f"(sensitivity, mean_rank {SensitivityChoice().mean_rank})",
            style="bold",
        )
        sums = {(layer, SUM): float(each) for layer, each in report.layer_ranks().items()}
        largest, largest_sum = max(*ranks.values(), 1.0), max(*sums.values(), 1.0)
        numbers = {
            place: f"{value:.1f}".removesuffix(".0") for place, value in (ranks | sums).items()
        }
        digits = max(map(len, numbers.values()))

        def cell(layer: str, kind: str, width: int) -> str:
            if (layer, kind) not in numbers:
                return "-".rjust(digits)
            share = sums[layer, SUM] / largest_sum if kind == SUM else ranks[layer, kind] / largest
            return f"{numbers[layer, kind]:>{digits}} {self._bar(share, width - digits - 1)}"

        yield from self._grid([*report.kinds, SUM], cell)

    def row_importance(self) -> Iterator[RenderableType]:
        report, marks = self.report, ASCII_SHADES if self.ascii_only else SHADES
        yield Text(
            "row importance: a module's rows from first to last, a mark for each run of rows",
            style="bold",
        )
        # The scale is not to depend on how many marks a cell has room for.
        every = np.concatenate(list(report.importances(JSON_BINS).values()))
        bounds = np.quantile(every, [0.2, 0.4, 0.6, 0.8])
        steps = "".join(
            f" {bound:.1e} {mark}" for bound, mark in zip(bounds, marks[1:], strict=True)
        )
        yield Text(f"mean |G|: {marks[0]}{steps}, a fifth of the marks each")
        importances = lru_cache(report.importances)

        def cell(layer: str, kind: str, width: int) -> str:
            values = importances(width).get((layer, kind))
            if values is None:
                return "-"
            return "".join(marks[level] for level in np.searchsorted(bounds, values, side="left"))

        yield from self._grid(report.kinds, cell)

    def dominant_rows(self) -> Iterator[RenderableType]:
        kinds = self.report.dominant()
        dominant = sum(rows.dominant for rows in kinds.values())
        share = share_text(dominant, sum(rows.rows for rows in kinds.values()))
        yield Text(
            f"dominant rows: {share} of all rows "
            f"(hit on more than half of {self.report.scored_steps} scored steps)",
            style="bold",
        )
        table = _table(Column(overflow="fold"), "", Column(justify="right"), "")
        bar = min(BAR, max(self.width // 4, 4))
        for kind, rows in kinds.items():
            by_module = f"  {100 * rows.least:.1f} to {100 * rows.most:.1f} by module"
            add_row(
                table,
                kind,
                self._bar(rows.share, bar).ljust(bar),
                share_text(rows.dominant, rows.rows),
                by_module if rows.modules > 1 else "",
            )
        yield table

    def _bar(self, share: float, width: int) -> str:
        """A bar of `share` (0 to 1) of `width` characters; what is not zero is seen."""
        if self.ascii_only:
            return "#" * math.ceil(share * width)
        whole, rest = divmod(math.ceil(share * width * 8), 8)
        return "█" * whole + EIGHTHS[rest].strip()

    def _grid(self, kinds: Sequence[str], cell: Cell) -> Iterator[Table]:
        """Layers as lines and kinds as columns; the other way round where kinds are too many.

        What has no room abreast stands below.
        """
        layers = self.report.layers
        turned = len(kinds) > max(len(layers), self._abreast(layers))
        rows, columns = (kinds, layers) if turned else (layers, kinds)
        blocks = math.ceil(len(columns) / self._abreast(rows))
        size = math.ceil(len(columns) / blocks)
        label = self._label(rows)
        width = min(max((self.width - label) // size - 1, 1), MOST_CELL)
        for start in range(0, len(columns), size):
            block = columns[start : start + size]
            heads = [name if len(name) <= width else name.replace(".", ".\n") for name in block]
            table = _table(
                Column(width=label, justify="right", overflow="fold"),
                *(
                    Column(Text(head), width=width, vertical="bottom", overflow="fold")
                    for head in heads
                ),
                show_header=True,
            )
            for row in rows:
                places = [(column, row) if turned else (row, column) for column in block]
                add_row(table, row, *(cell(*place, width) for place in places))
            yield table

    def _label(self, rows: Sequence[str]) -> int:
        return min(max(map(len, rows)), self.width // 2)

    def _abreast(self, rows: Sequence[str]) -> int:
        """How many columns have room beside each other, with `rows` at the left."""
        return max((self.width - self._label(rows)) // (LEAST_CELL + 1), 1)


def _table(*columns: Column | str, show_header: bool = False) -> Table:
    """A table without lines, with one space between its columns."""
    return Table(*columns, box=None, show_header=show_header, pad_edge=False, padding=(0, 1, 0, 0))
