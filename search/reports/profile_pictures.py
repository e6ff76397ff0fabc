"""The three figures of a profile as PNG; the only module that draws with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from search.reports.profile_figures import ProfileReport
from spaces.errors import ConfigError
from spaces.methods.sensitivity import SensitivityChoice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120
_TALLEST, _WIDEST = 60.0, 30.0  # inches: what matplotlib can hold, and a viewer can open
_BINS_PER_KIND = 32
_KINDS_ABREAST = 16
_NUMBERED_BARS, _LABELLED_LINES = 40, 250
_GREY = "0.85"


def write_pictures(report: ProfileReport, folder: Path) -> tuple[Path, ...]:
    """Write `rank-budget.png`, `row-importance.png` and `dominant-rows.png` into a folder.

    The folder is made where it is not there; files of these names are replaced. A figure that the
    report lacks is left out. Returns the files written.

    Raises:
        ConfigError: the folder or a file cannot be written.
    """
    pictures: dict[str, Callable[[ProfileReport], Figure]] = {
        "rank_budget": _rank_budget,
        "row_importance": _row_importance,
        "dominant_rows": _dominant_rows,
    }
    written = []
    for name, draw in pictures.items():
        if name in report.absent:
            continue
        file = folder / f"{name.replace('_', '-')}.png"
        data = _png(draw(report))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigError(f"--out: {file} cannot be written ({reason}); name another") from None
        written.append(file)
    return tuple(written)


def _png(figure: Figure) -> bytes:
    held = io.BytesIO()
    # The same report gives the same bytes: nothing of the program's version or of the time.
    figure.savefig(held, format="png", dpi=DPI, metadata={"Software": None})
    return held.getvalue()


def _axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(
        figsize=(min(max(width, 8.0), _WIDEST), min(max(height, 2.5), _TALLEST)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _rank_budget(report: ProfileReport) -> Figure:
    """A strip of bars for every kind of module, one bar a layer, and one for the layers' sums."""
    layers, kinds = report.layers, report.kinds
    ranks = report.ranks()
    figure, axes = _axes(
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
    _ticks(axes, "y", [-each for each in range(len(kinds) + 1)], ["sum of a layer", *kinds])
    _ticks(axes, "x", *_thinned(layers, _NUMBERED_BARS))
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
    axes.axhline(-place, color=_GREY, linewidth=0.6, zorder=0)
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


def _row_importance(report: ProfileReport) -> Figure:
    """Layers x kinds, and within a kind its rows from the first to the last, in bins.

    Kinds x layers where the kinds are too many to stand abreast.
    """
    given = report.importances(_BINS_PER_KIND)
    rows, columns, towards = report.layers, report.kinds, "layer"
    if len(columns) > max(len(rows), _KINDS_ABREAST):
        rows, columns, towards = columns, rows, "kind"
        given = {(kind, layer): values for (layer, kind), values in given.items()}
    unknown = np.full(_BINS_PER_KIND, np.nan)
    image = np.array(
        [np.concatenate([given.get((row, column), unknown) for column in columns]) for row in rows]
    )
    figure, axes = _axes(
        3.0 + 1.1 * len(columns),
        2.0 + 0.22 * len(rows),
        "Row importance: mean |G| of the rows of every module, its first row at the left",
    )
    shown = axes.imshow(
        image, aspect="auto", interpolation="nearest", cmap=_colours(), norm=_scale(image)
    )
    figure.colorbar(shown, ax=axes, pad=0.01)
    for edge in range(1, len(columns)):
        axes.axvline(edge * _BINS_PER_KIND - 0.5, color="white", linewidth=1.5)
    middles = [(place + 0.5) * _BINS_PER_KIND - 0.5 for place in range(len(columns))]
    _ticks(axes, "x", middles, columns, rotation=20)
    _ticks(axes, "y", *_thinned(rows, _LABELLED_LINES))
    axes.set_ylabel(towards)
    return figure


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=_GREY)


def _scale(image: np.ndarray[Any, Any]) -> LogNorm | None:
    """Logarithmic, for kinds differ by orders of magnitude; rows without importance at its end."""
    positive = image[image > 0]
    if positive.size == 0 or positive.min() == positive.max():
        return None
    low, high = np.quantile(positive, [0.02, 1.0])
    return LogNorm(float(low), float(high), clip=True) if low < high else None


def _dominant_rows(report: ProfileReport) -> Figure:
    """A bar for every kind, and a dot for each of its modules."""
    kinds = report.dominant()
    figure, axes = _axes(
        8.0,
        1.2 + 0.4 * len(kinds),
        f"Dominant rows: hit on more than half of the {report.scored_steps} scored steps",
    )
    for place, rows in enumerate(kinds.values()):
        axes.barh(place, 100 * rows.share, height=0.6, color="C0", alpha=0.45)
        shares = [100 * share for share in rows.shares]
        axes.plot(shares, [place] * len(shares), "|", color="C0", markersize=9)
        axes.text(0.4, place, f"{100 * rows.share:.1f} %", va="center", fontsize=8)
    _ticks(axes, "y", range(len(kinds)), list(kinds))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the rows of a kind (bar), of each of its modules (marks)")
    return figure


def _ticks(
    axes: Axes, which: str, at: Sequence[float], labels: Sequence[str], rotation: float = 0
) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    # A name is not to be read as matplotlib's mathematics.
    axis.set_ticks(
        list(at), list(labels), fontsize=8, rotation=rotation,
        ha="right" if which == "y" or rotation else "center", parse_math=False,
    )  # fmt: skip


def _thinned(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Places and names of at most `most` of them, evenly spaced."""
    step = -(-len(names) // most)
    at = list(range(0, len(names), step))
    return at, [names[place] for place in at]
