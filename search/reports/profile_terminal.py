"""A profile's figures drawn for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search.reports.profile_figures import JSON_BINS, ProfileReport
from spaces.methods.sensitivity import SensitivityChoice

WIDEST = 100  # characters; a longer line is hard to follow with the eye
_LEAST_CELL, _MOST_CELL = 8, 18  # characters of a column, its gap included
_BAR = 30
_BLOCKS, _ASCII_BLOCKS = " ▏▎▍▌▋▊▉█", " #"
_SHADES, _ASCII_SHADES = "·░▒▓█", ".:+#@"
_SUM = "(sum)"
Cell = Callable[[str, str, int], str]
"""What stands in a layer's and a kind's place, in so many characters."""


@dataclass(frozen=True)
class TerminalFigures:
    """A report as Rich draws it: as wide as the terminal, with ASCII where it knows no more."""

    report: ProfileReport

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        pen = _Pen(min(options.max_width, WIDEST), options.ascii_only)
        drawings = (
            ("rank_budget", "rank budget", _draw_rank_budget),
            ("row_importance", "row importance", _draw_row_importance),
            ("dominant_rows", "dominant rows", _draw_dominant_rows),
        )
        for name, title, draw in drawings:
            if name in self.report.absent:
                yield Text(f"\n{title}: not drawn: {self.report.absent[name]}")
                continue
            head, *body = draw(self.report, pen)
            yield Text(f"\n{head}", style="bold")
            yield from (Text(line, no_wrap=True, overflow="crop") for line in body)


@dataclass(frozen=True)
class _Pen:
    """How wide a figure may be, and with which characters it is drawn."""

    width: int
    ascii_only: bool

    def bar(self, share: float, width: int) -> str:
        """A bar of `share` (0 to 1) of `width` characters; what is not zero is seen."""
        blocks = _ASCII_BLOCKS if self.ascii_only else _BLOCKS
        parts = len(blocks) - 1
        length = round(share * width * parts)
        if share > 0:
            length = max(length, 1)
        whole, rest = divmod(length, parts)
        return (blocks[-1] * whole + (blocks[rest] if rest else "")).ljust(width)

    @property
    def shades(self) -> str:
        return _ASCII_SHADES if self.ascii_only else _SHADES

    def cut(self, text: str, width: int) -> str:
        """A name in at most `width` characters; its end tells more than its beginning."""
        if len(text) <= width:
            return text
        return (("~" if self.ascii_only else "…") + text[len(text) - width + 1 :])[:width]


def _draw_rank_budget(report: ProfileReport, pen: _Pen) -> Iterator[str]:
    choice = SensitivityChoice()
    ranks = report.ranks()
    total = sum(module.rank or 0 for module in report.modules)
    yield (
        f"rank budget: {total} ranks over {len(report.modules)} modules "
        f"(sensitivity, mean_rank {choice.mean_rank})"
    )
    sums = {
        layer: sum(module.rank or 0 for module in report.modules if module.layer == layer)
        for layer in report.layers
    }
    values = {**ranks, **{(layer, _SUM): float(each) for layer, each in sums.items()}}
    largest, largest_sum = max(ranks.values()), max(sums.values())
    digits = max(len(_number(value)) for value in values.values())

    def cell(layer: str, kind: str, width: int) -> str:
        value = values.get((layer, kind))
        if value is None:
            return "-".rjust(digits)
        share = value / max(largest_sum if kind == _SUM else largest, 1)
        return f"{_number(value):>{digits}} {pen.bar(share, max(width - digits - 1, 1))}"

    yield from _table(report.layers, (*report.kinds, _SUM), cell, pen)


def _draw_row_importance(report: ProfileReport, pen: _Pen) -> Iterator[str]:
    yield "row importance: a module's rows from first to last, a mark for each run of rows"
    # The marks that a cell has room for are known only when it is drawn; the scale is not to
    # depend on it.
    every = np.concatenate(list(report.importances(JSON_BINS).values()))
    bounds = np.quantile(every, [0.2, 0.4, 0.6, 0.8])
    marks = pen.shades
    steps = "".join(f" {bound:.1e} {mark}" for bound, mark in zip(bounds, marks[1:], strict=True))
    yield f"mean |G|: {marks[0]}{steps}, a fifth of the marks each"
    binned_to: dict[int, dict[tuple[str, str], NDArray[np.float64]]] = {}

    def cell(layer: str, kind: str, width: int) -> str:
        if width not in binned_to:
            binned_to[width] = report.importances(width)
        values = binned_to[width].get((layer, kind))
        if values is None:
            return "-"
        return "".join(marks[level] for level in np.searchsorted(bounds, values, side="left"))

    yield from _table(report.layers, report.kinds, cell, pen)


def _draw_dominant_rows(report: ProfileReport, pen: _Pen) -> Iterator[str]:
    kinds = report.dominant()
    share = sum(rows.dominant for rows in kinds.values()) / sum(r.rows for r in kinds.values())
    yield (
        f"dominant rows: {100 * share:.1f} % of all rows "
        f"(hit on more than half of {report.scored_steps} scored steps)"
    )
    label = min(max(map(len, kinds)), pen.width // 3)
    width = max(min(_BAR, pen.width - label - 37), 4)
    for kind, rows in kinds.items():
        line = (
            f"{pen.cut(kind, label):{label}} {pen.bar(rows.share, width)} {100 * rows.share:5.1f} %"
        )
        if rows.modules > 1:
            line += f"   {100 * rows.least:.1f} to {100 * rows.most:.1f} by module"
        yield line


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def _table(layers: Sequence[str], kinds: Sequence[str], cell: Cell, pen: _Pen) -> Iterator[str]:
    """Layers as lines and kinds as columns; the other way round where kinds are too many."""
    rows, columns, draw = layers, kinds, cell
    if len(kinds) > len(layers) and len(kinds) > _per_block(pen, _label_width(layers, pen)):
        rows, columns = kinds, layers

        def draw(row: str, column: str, width: int) -> str:
            return cell(column, row, width)

    label = _label_width(rows, pen)
    blocks = math.ceil(len(columns) / _per_block(pen, label))
    size = math.ceil(len(columns) / blocks)
    step = min(_MOST_CELL, max((pen.width - label) // size, 2))
    for start in range(0, len(columns), size):
        block = columns[start : start + size]
        yield from _header(block, " " * label, step)
        for row in rows:
            cells = "".join(f" {draw(row, column, step - 1):{step - 1}}" for column in block)
            yield f"{pen.cut(row, label):>{label}}{cells}".rstrip()


def _label_width(rows: Iterable[str], pen: _Pen) -> int:
    return min(max(map(len, rows)), pen.width // 2)


def _per_block(pen: _Pen, label: int) -> int:
    """How many columns have room beside each other."""
    return max((pen.width - label) // _LEAST_CELL, 1)


def _header(names: Sequence[str], margin: str, step: int) -> Iterator[str]:
    """The names of columns, folded at their dots, the last lines of all on one line."""
    folded = [_folded(name, step - 1) for name in names]
    height = max(map(len, folded))
    for line in range(height):
        parts = [([""] * (height - len(each)) + each)[line] for each in folded]
        yield (margin + "".join(f" {part:{step - 1}}" for part in parts)).rstrip()


def _folded(name: str, width: int) -> list[str]:
    """A dotted name in lines of at most `width` characters, broken behind dots where it can be."""
    lines = [""]
    for part in name.replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1]) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return lines
