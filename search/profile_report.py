"""What `ranksweep profiles` shows: who made a profile, what uses it, and three figures of it.

The figures are drawn with characters, as wide as the terminal is, and need no colour:
`search.profile_pictures` draws the same numbers as PNG.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from search.queries import ProfileUse
from spaces.errors import RanksweepError
from spaces.pilora import Partition, dominant_rows
from spaces.profile import FIELDS, Profile
from spaces.sensitivity import SensitivityChoice, allocated_ranks

JSON_BINS = 16
WIDEST = 100  # characters; a longer line is hard to follow with the eye

_LEAST_CELL, _MOST_CELL = 8, 18  # characters of a column, its gap included
_BAR = 30
_BLOCKS, _ASCII_BLOCKS = " ▏▎▍▌▋▊▉█", " #"
_SHADES, _ASCII_SHADES = "·░▒▓█", ".:+#@"
_SUM = "(sum)"
_LONGEST_SUFFIX = 6


# The list of profiles --------------------------------------------------------------------------


def profiles_table(
    manifests: Sequence[Mapping[str, Any]],
    uses: Mapping[str, ProfileUse] | None,
    now: datetime | None = None,
) -> Table:
    """The manifests of a store as a table; `uses` by key, None where tracking does not tell."""
    table = Table()
    table.add_column("key", no_wrap=True)
    table.add_column("base", overflow="fold", ratio=3)
    table.add_column("task", overflow="fold", ratio=2)
    for name in ("size", "age"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("by", overflow="fold", ratio=2)
    table.add_column("cost", no_wrap=True, justify="right")
    table.add_column("runs", justify="right")
    for manifest in manifests:
        use = None if uses is None else uses.get(str(manifest["key"]), ProfileUse())
        cells = (
            str(manifest["key"])[:12],
            *(printable(manifest.get(name)) for name in ("base", "task")),
            _bytes(manifest.get("size")),
            age(manifest.get("published"), now or datetime.now(UTC)),
            printable(manifest.get("by")),
            _seconds(manifest.get("seconds")),
            "-" if use is None else use.text,
        )
        # Text, for what a manifest says is not to be read as Rich's markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table


def profiles_json(
    manifests: Sequence[Mapping[str, Any]], uses: Mapping[str, ProfileUse] | None
) -> list[dict[str, Any]]:
    """The manifests with `used_by`, which is None where tracking does not tell."""
    return [
        {
            **manifest,
            "used_by": None
            if uses is None
            else uses.get(str(manifest["key"]), ProfileUse()).as_dict(),
        }
        for manifest in manifests
    ]


def age(published: Any, now: datetime) -> str:
    """How long ago a manifest's time (ISO 8601) was, in its largest unit: 40 s, 3 h, 12 d."""
    try:
        then = datetime.fromisoformat(published)
        seconds = max((now - then).total_seconds(), 0.0)
    except (TypeError, ValueError):  # no text, no time, or a time without its zone
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def printable(value: Any) -> str:
    """A value of a manifest or a profile for one line; what would steer a terminal is replaced."""
    if value is None:
        return "-"
    return "".join(
        mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in str(value)
    )


def _bytes(size: Any) -> str:
    if not _is_number(size):
        return "-"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _seconds(spent: Any) -> str:
    if not _is_number(spent):
        return "-"
    return f"{spent:,.0f} s" if spent >= 9.95 else f"{spent:.1f} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The numbers of the figures ---------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleFigures:
    """What the figures show of one module; None for what the profile does not tell.

    `layer` and `kind` are its place in the base: modules that differ in the layer's number alone
    have one kind.
    """

    name: str
    layer: str
    kind: str
    rows: int
    rank: int | None = None
    """By Sensitivity-LoRA with its default choice."""
    dominant: int | None = None
    """Dominant rows by PiLoRA's default partition: hit on more than half of the scored steps."""
    row_importance: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ProfileReport:
    """The numbers behind the figures of a profile, in the base's module order."""

    modules: tuple[ModuleFigures, ...]
    scored_steps: int
    left_out: Mapping[str, int]
    """Tensor -> how many modules lack it; a profile made by hand may leave some out."""
    absent: Mapping[str, str]
    """Figure -> why it cannot be drawn."""

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The layers in the base's order."""
        return tuple(dict.fromkeys(module.layer for module in self.modules))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of modules in the base's order."""
        return tuple(dict.fromkeys(module.kind for module in self.modules))

    @cached_property
    def cells(self) -> dict[tuple[str, str], list[ModuleFigures]]:
        """The modules of every layer and kind: one, or several such as the experts of a layer."""
        found: dict[tuple[str, str], list[ModuleFigures]] = {}
        for module in self.modules:
            found.setdefault((module.layer, module.kind), []).append(module)
        return found

    def ranks(self) -> dict[tuple[str, str], float]:
        """(layer, kind) -> rank, the mean where there are several modules."""
        return {
            place: float(np.mean(ranks))
            for place, modules in self.cells.items()
            if (ranks := [module.rank for module in modules if module.rank is not None])
        }

    def importances(self, bins: int) -> dict[tuple[str, str], NDArray[np.float64]]:
        """(layer, kind) -> mean row importance of each of `bins` runs of rows, float64 [bins]."""
        return {
            place: np.mean([binned(rows, bins) for rows in given], axis=0)
            for place, modules in self.cells.items()
            if (given := [m.row_importance for m in modules if m.row_importance is not None])
        }

    def dominant(self) -> dict[str, DominantRows]:
        """Kind -> its dominant rows."""
        known = [module for module in self.modules if module.dominant is not None]
        return {
            kind: DominantRows.of([module for module in known if module.kind == kind])
            for kind in dict.fromkeys(module.kind for module in known)
        }

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON can hold them; a figure that cannot be drawn says why (`absent`)."""
        drawn: dict[str, Callable[[], dict[str, Any]]] = {
            "rank_budget": self._rank_budget_json,
            "row_importance": self._row_importance_json,
            "dominant_rows": self._dominant_rows_json,
        }
        return {
            name: {"absent": self.absent[name]} if name in self.absent else make()
            for name, make in drawn.items()
        }

    def _rank_budget_json(self) -> dict[str, Any]:
        return {
            "choice": SensitivityChoice().model_dump(mode="json"),
            "total": sum(module.rank or 0 for module in self.modules),
            "modules": [
                {**_place(module), "rank": module.rank}
                for module in self.modules
                if module.rank is not None
            ],
        }

    def _row_importance_json(self) -> dict[str, Any]:
        return {
            "bins": JSON_BINS,
            "modules": [
                {
                    **_place(module),
                    "rows": module.rows,
                    "mean": float(np.mean(module.row_importance, dtype=np.float64)),
                    "largest": float(np.max(module.row_importance)),
                    "by_bin": binned(module.row_importance, JSON_BINS).tolist(),
                }
                for module in self.modules
                if module.row_importance is not None
            ],
        }

    def _dominant_rows_json(self) -> dict[str, Any]:
        return {
            "partition": Partition().model_dump(mode="json"),
            "kinds": [
                {
                    "kind": kind,
                    "modules": rows.modules,
                    "rows": rows.rows,
                    "dominant_rows": rows.dominant,
                    "share": rows.share,
                    "least": rows.least,
                    "most": rows.most,
                }
                for kind, rows in self.dominant().items()
            ],
            "modules": [
                {**_place(module), "rows": module.rows, "dominant_rows": module.dominant}
                for module in self.modules
                if module.dominant is not None
            ],
        }


@dataclass(frozen=True)
class DominantRows:
    """The dominant rows of the modules of one kind."""

    modules: int
    rows: int
    dominant: int
    shares: tuple[float, ...]
    """Of each module."""

    @classmethod
    def of(cls, modules: Sequence[ModuleFigures]) -> DominantRows:
        counts = [(module.dominant or 0, module.rows) for module in modules]
        return cls(
            modules=len(modules),
            rows=sum(rows for _, rows in counts),
            dominant=sum(dominant for dominant, _ in counts),
            shares=tuple(dominant / rows for dominant, rows in counts),
        )

    @property
    def share(self) -> float:
        """Of all rows of the kind."""
        return self.dominant / self.rows

    @property
    def least(self) -> float:
        """Share of the module with the smallest."""
        return min(self.shares)

    @property
    def most(self) -> float:
        """Share of the module with the largest."""
        return max(self.shares)


def profile_report(profile: Profile) -> ProfileReport:
    """The numbers of a profile's figures, whatever tensors it leaves out."""
    absent: dict[str, str] = {}
    ranks: Sequence[int | None] = [None] * len(profile.targets)
    try:
        ranks = allocated_ranks(SensitivityChoice(), profile.targets, profile)
    except RanksweepError as error:
        absent["rank_budget"] = str(error)
    dominant, why = _dominant_counts(profile)
    if not any(count is not None for count in dominant):
        absent["dominant_rows"] = why
    modules = tuple(
        ModuleFigures(
            name=printable(target.name),
            layer=layer,
            kind=kind,
            rows=target.shape[0],
            rank=rank,
            dominant=count,
            row_importance=profile.modules[target.name].row_importance,
        )
        for target, (layer, kind), rank, count in zip(
            profile.targets,
            places([target.name for target in profile.targets]),
            ranks,
            dominant,
            strict=True,
        )
    )
    if all(module.row_importance is None for module in modules):
        absent["row_importance"] = "no module has row_importance; profile the base again"
    if not modules:
        absent = dict.fromkeys(("rank_budget", "row_importance", "dominant_rows"), "no modules")
    lacking = {
        name: sum(getattr(module, name) is None for module in profile.modules.values())
        for name in FIELDS
    }
    left_out = {name: count for name, count in lacking.items() if count}
    return ProfileReport(modules, profile.scored_steps, left_out, absent)


def profile_summary(
    profile: Profile, manifest: Mapping[str, Any] | None, report: ProfileReport
) -> dict[str, Any]:
    """What a profile is of: its manifest, or where a file has none what the file itself says."""
    known = profile.metadata if manifest is None else manifest
    summary: dict[str, Any] = {name: known[name] for name in ("base", "task") if name in known}
    summary |= {
        "modules": len(profile.targets),
        "scored_steps": profile.scored_steps,
        "top_percent_grid": list(profile.top_percent_grid),
        **(manifest or {}),
    }
    if report.left_out:
        summary["left_out"] = dict(report.left_out)
    return summary


def _dominant_counts(profile: Profile) -> tuple[list[int | None], str]:
    """Dominant rows of every module, None where that is not known, and why it is not."""
    counts: list[int | None] = []
    why = ""
    for place, target in enumerate(profile.targets):
        try:
            counts.append(len(dominant_rows(Partition(), target, profile, (0, place))))
        except RanksweepError as error:
            counts.append(None)
            why = why or str(error)
    return counts, why


def binned(values: NDArray[Any], bins: int) -> NDArray[np.float64]:
    """Means of `bins` runs of `values` [n] as equal in length as can be, float64 [bins].

    Where there are fewer values than bins, a value fills several of them.
    """
    starts = np.arange(bins) * values.shape[0] // bins
    lengths = np.diff(np.append(starts, values.shape[0]))
    sums = np.add.reduceat(values.astype(np.float64), starts)
    means: NDArray[np.float64] = sums / np.maximum(lengths, 1)
    return means


def places(names: Sequence[str]) -> list[tuple[str, str]]:
    """Layer and kind of every module, told by its name.

    The first number in a name is its layer, what stands behind it the kind, with `*` for further
    numbers (experts, blocks of a stage); the kind is shortened to what tells it from the others.
    Layers of several stacks (encoder, decoder) also carry what tells these apart. A module without
    a number has the layer `-`.
    """
    split = [_split(printable(name)) for name in names]
    stacks = _stack_labels({stack for stack, number, _ in split if number})
    kinds = _kind_labels({kind for _, _, kind in split})
    return [
        (f"{stacks[stack]} {number}".strip() if number else "-", kinds[kind])
        for stack, number, kind in split
    ]


def _split(name: str) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """What stands before the layer's number, the number (empty without one), and the kind."""
    parts = tuple(name.split("."))
    for place, part in enumerate(parts):
        if part.isdecimal():
            behind = tuple("*" if each.isdecimal() else each for each in parts[place + 1 :])
            return parts[:place], part, behind or parts[max(place - 1, 0) : place] or ("*",)
    return (), "", parts


def _stack_labels(stacks: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The components of each stack that not all of them begin or end with; nothing for only one."""
    if len(stacks) < 2:
        return dict.fromkeys(stacks, "")
    shortest = min(len(stack) for stack in stacks)
    begin = 0
    while begin < shortest and len({stack[begin] for stack in stacks}) == 1:
        begin += 1
    end = 0
    while end < shortest - begin and len({stack[-1 - end] for stack in stacks}) == 1:
        end += 1
    return {stack: ".".join(stack[begin : len(stack) - end] or stack[-1:]) for stack in stacks}


def _kind_labels(kinds: set[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The last components of each kind that no other kind ends with; else all of them."""
    lengths = range(1, _LONGEST_SUFFIX + 1)
    ends = Counter(kind[-length:] for kind in kinds for length in lengths if length <= len(kind))
    return {
        kind: ".".join(
            next((kind[-n:] for n in lengths if n <= len(kind) and ends[kind[-n:]] == 1), kind)
        )
        for kind in kinds
    }


def _place(module: ModuleFigures) -> dict[str, str]:
    return {"module": module.name, "layer": module.layer, "kind": module.kind}


# The figures in the terminal --------------------------------------------------------------------


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


Cell = Callable[[str, str, int], str]
"""What stands in a layer's and a kind's place, in so many characters."""


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
