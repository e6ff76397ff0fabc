"""Numbers of every layer and kind of module as a heat map, printed and to be moved over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import NDArray

from search.reports.drawing import GREY, plot, thinned, ticks
from search.reports.panel import Cell
from search.reports.sweep.measured import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS_ABREAST = 16
_TALLEST = 14.0  # inches
_LABELLED_LINES = 80
_UPRIGHT = 8
"""More names than so many stand on end, for they would cross each other on a phone."""
_GAP = 0.06
"""Between the kinds, of a kind's width."""
_MOST_NUMBERS, _MOST_BINS = 6_000, 16


def bins_for(places: int) -> int:
    """How many bins each of so many places may have on a page that stays small: 2 to 16."""
    return min(max(_MOST_NUMBERS // max(places, 1), 2), _MOST_BINS)


@dataclass(frozen=True)
class HeatMap:
    """A line for every layer, a column for every kind, and in each place `bins` numbers abreast.

    Where the kinds are too many to stand abreast, they are the lines. `cells` has float64 [bins] of
    (layer, kind); what it lacks is grey. `measure` is what the colours say, `within` what stands in
    bins. `log` takes a logarithmic scale, for numbers that differ by orders of magnitude.
    """

    title: str
    measure: str
    within: str
    layers: Sequence[str]
    kinds: Sequence[str]
    cells: Mapping[tuple[str, str], NDArray[np.float64]] = field(repr=False)
    bins: int
    log: bool = False

    @property
    def is_turned(self) -> bool:
        """Whether the kinds are the lines."""
        return len(self.kinds) > max(len(self.layers), _KINDS_ABREAST)

    @property
    def lines(self) -> Sequence[str]:
        """The names of the lines."""
        return self.kinds if self.is_turned else self.layers

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return self.layers if self.is_turned else self.kinds

    def numbers(self) -> list[list[Cell]]:
        """A row of layer, kind, which bin of how many, and its number, for every mark."""
        return [
            [layer, kind, f"{place + 1}/{self.bins}", rounded(value)]
            for (layer, kind), values in self.cells.items()
            for place, value in enumerate(values)
        ]

    # -- printed -----------------------------------------------------------------------------------

    def printed(self) -> Figure:
        """For paper."""
        image = np.concatenate([self._column(name) for name in self.columns], axis=1)
        height = 2.0 + min(0.22 * len(self.lines), _TALLEST)
        width = 3.0 + min(1.1 * len(self.columns), 6.6 + 0.5 * len(self.columns))
        figure, axes = plot(width, height, self.title)
        shown = axes.imshow(
            image,
            aspect="auto",
            interpolation="nearest",
            cmap=colormaps["viridis"].with_extremes(bad=GREY),
            norm=self._norm(image),
        )
        figure.colorbar(shown, ax=axes, pad=0.01, fraction=0.04, aspect=30, label=self.measure)
        for edge in range(1, len(self.columns)):
            axes.axvline(edge * self.bins - 0.5, color="white", linewidth=1.5)
        middles = [(place + 0.5) * self.bins - 0.5 for place in range(len(self.columns))]
        ticks(axes, "x", middles, self.columns, rotation=20)
        ticks(axes, "y", *thinned(self.lines, _LABELLED_LINES))
        axes.set_ylabel("kind" if self.is_turned else "layer")
        return figure

    def _column(self, name: str) -> NDArray[np.float64]:
        """The numbers of a column, float64 [lines, bins]."""
        unknown = np.full(self.bins, np.nan)
        return np.array([self.cells.get(self._place(line, name), unknown) for line in self.lines])

    def _place(self, line: str, column: str) -> tuple[str, str]:
        return (column, line) if self.is_turned else (line, column)

    def _norm(self, image: NDArray[np.float64]) -> Normalize:
        """Rows of no importance stand at the end of a logarithmic scale."""
        low, high = self._limits(image)
        return LogNorm(low, high, clip=True) if self._is_log(image) else Normalize(low, high)

    def _is_log(self, image: NDArray[np.float64]) -> bool:
        positive = image[image > 0]
        return self.log and positive.size > 0 and _span(positive)[0] < _span(positive)[1]

    def _limits(self, image: NDArray[np.float64]) -> tuple[float, float]:
        if self._is_log(image):
            return _span(image[image > 0])
        known = image[np.isfinite(image)]
        high = float(known.max()) if known.size else 0.0
        return 0.0, high or 1.0

    # -- to be moved over --------------------------------------------------------------------------

    def brushed(self) -> Mapping[str, Any]:
        """The same as Plotly's JSON has it: a trace for every column."""
        image = np.concatenate([self._column(name) for name in self.columns], axis=1)
        is_log = self._is_log(image)
        low, high = self._limits(image)
        bar: dict[str, Any] = {"title": {"text": self.measure, "side": "right"}, "thickness": 12}
        if is_log:
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
            marks = [(m, power) for power in powers for m in (1, 2, 5)]
            bar["tickvals"] = [rounded(math.log10(m) + power, 5) for m, power in marks]
            bar["ticktext"] = [f"{m}e{power}" for m, power in marks]
            low, high = math.log10(low), math.log10(high)
        data = []
        for place, name in enumerate(self.columns):
            numbers = self._column(name)
            told = label(name)
            line = "%{y}, " if self.is_turned else "layer %{y}, "
            trace: dict[str, Any] = {
                "type": "heatmap",
                "coloraxis": "coloraxis",
                "x0": round(place * (1 + _GAP) + 0.5 / self.bins, 4),
                "dx": round(1 / self.bins, 4),
                "y": [label(each) for each in self.lines],
                "z": _listed(np.log10(np.clip(numbers, 10**low, None)) if is_log else numbers),
                "hovertemplate": f"{line}{told}: %{{z:.3~g}}<extra></extra>",
                "hoverongaps": False,
            }
            if is_log:
                trace["customdata"] = _listed(numbers)
                trace["hovertemplate"] = f"{line}{told}: %{{customdata:.2e}}<extra></extra>"
            data.append(trace)
        middles = [round(place * (1 + _GAP) + 0.5, 4) for place in range(len(self.columns))]
        names = [label(name) for name in self.columns]
        upright = len(names) > _UPRIGHT
        below = 6 * max(map(len, self.columns), default=0) if upright else 60
        layout = {
            "height": min(max(100 + below + 22 * len(self.lines), 300), 1400),
            "coloraxis": {"colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar},
            "xaxis": {
                "tickvals": middles, "ticktext": names, "automargin": True,
                "tickangle": -90 if upright else -35,
                "showgrid": False, "zeroline": False,
            },
            "yaxis": {
                "type": "category", "autorange": "reversed", "automargin": True, "showgrid": False,
                "title": {"text": "kind" if self.is_turned else "layer"},
            },
        }  # fmt: skip
        return {"data": data, "layout": layout}


def _span(positive: NDArray[np.float64]) -> tuple[float, float]:
    """The limits of a logarithmic scale: what is smaller than almost all stands at its end."""
    low, high = np.quantile(positive, [0.02, 1.0])
    return float(low), float(high)


def _listed(image: NDArray[np.float64]) -> list[list[float | None]]:
    return [[rounded(value) for value in line] for line in image]


def rounded(value: float, digits: int = 3) -> float | None:
    """A number to so many significant digits, as a page holds it; None of none."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
