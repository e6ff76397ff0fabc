"""The three figures of a profile, drawn for paper and written as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.reports.drawing import GREY, as_png, plot, thinned, ticks
from search.reports.heat_map import HeatMap
from search.reports.profile_figures import ProfileReport
from spaces.errors import ConfigError
from spaces.methods.sensitivity import SensitivityChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS_PER_KIND = 32
_NUMBERED_BARS = 40


def write_pictures(report: ProfileReport, folder: Path) -> tuple[Path, ...]:
    """Write `rank-budget.png`, `row-importance.png` and `dominant-rows.png` into a folder.

    The folder is made where it is not there; files of these names are replaced. A figure that the
    report lacks is left out. Returns the files written.

    Raises:
        ConfigError: the folder or a file cannot be written.
    """
    pictures: dict[str, Callable[[ProfileReport], Figure]] = {
        "rank_budget": _rank_budget,
        "row_importance": lambda report: importance_map(report, _BINS_PER_KIND).printed(),
        "dominant_rows": _dominant_rows,
    }
    written = []
    for name, draw in pictures.items():
        if name in report.absent:
            continue
        file = folder / f"{name.replace('_', '-')}.png"
        data = as_png(draw(report))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"--out: {file} cannot be written ({reason}); name another") from None
        written.append(file)
    return tuple(written)


def importance_map(report: ProfileReport, bins: int) -> HeatMap:
    """Layers x kinds, and within a kind its rows from the first to the last, in bins."""
    return HeatMap(
        title="Row importance: mean |G| of the rows of every module, its first row at the left",
        measure="mean |G|",
        within="rows",
        layers=report.layers,
        kinds=report.kinds,
        cells=report.importances(bins),
        bins=bins,
        log=True,
    )


def _rank_budget(report: ProfileReport) -> Figure:
    """A strip of bars for every kind of module, one bar a layer, and one for the layers' sums."""
    layers, kinds = report.layers, report.kinds
    ranks = report.ranks()
    figure, axes = plot(
        2.5 + 0.28 * len(layers),
        1.2 + 0.65 * (len(kinds) + 1),
        f"Rank per module: {report.total_rank} ranks over "
        f"{len(report.modules)} modules (sensitivity, mean_rank {SensitivityChoice().mean_rank})",
    )
    numbered = len(layers) <= _NUMBERED_BARS
    _strip(axes, 0, [float(each) for each in report.layer_ranks().values()], "0.5", numbered)
    largest = max(*ranks.values(), 1.0)
    for place, kind in enumerate(kinds, 1):
        values = [ranks.get((layer, kind)) for layer in layers]
        _strip(axes, place, values, f"C{(place - 1) % 10}", numbered, largest)
    ticks(axes, "y", [-each for each in range(len(kinds) + 1)], ["sum of a layer", *kinds])
    ticks(axes, "x", *thinned(layers, _NUMBERED_BARS))
    axes.set_ylim(-len(kinds) - 0.1, 1.0)
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xlabel("layer")
    return figure


def _strip(
    axes: Axes,
    place: int,
    values: Sequence[float | None],
    colour: str,
    numbered: bool,
    largest: float | None = None,
) -> None:
    """Bars on a line of their own, `largest` a little less than the distance between lines."""
    height = max(largest or max(value or 0.0 for value in values), 1.0) / 0.72
    axes.axhline(-place, color=GREY, linewidth=0.6, zorder=0)
    for x, value in enumerate(values):
        if value is None:
            continue
        # A rank of 1 beside one of hundreds is still seen.
        length = max(value / height, 0.02) if value else 0.0
        axes.bar(x, length, bottom=-place, width=0.8, color=colour)
        if numbered:
            axes.text(
                x, length - place + 0.02, f"{value:.3g}", ha="center", va="bottom", fontsize=6
            )  # fmt: skip


def _dominant_rows(report: ProfileReport) -> Figure:
    """A bar for every kind, and a dot for each of its modules."""
    kinds = report.dominant()
    figure, axes = plot(
        8.0,
        1.2 + 0.4 * len(kinds),
        f"Dominant rows: hit on more than half of the {report.scored_steps} scored steps",
    )
    for place, rows in enumerate(kinds.values()):
        axes.barh(place, 100 * rows.share, height=0.6, color="C0", alpha=0.45)
        shares = [100 * share for share in rows.shares]
        axes.plot(shares, [place] * len(shares), "|", color="C0", markersize=9)
        axes.text(0.4, place, f"{100 * rows.share:.1f} %", va="center", fontsize=8)
    ticks(axes, "y", range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the rows of a kind (bar), of each of its modules (marks)")
    return figure
