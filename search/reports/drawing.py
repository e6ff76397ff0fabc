"""What the printed figures share: a canvas of a fitting size, ticks and names that are no formulas.

The figures themselves stand where their numbers are made.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
TALLEST, WIDEST = 60.0, 30.0  # inches: what matplotlib can hold, and a viewer can open
GREY = "0.85"


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file; the same figure gives the same bytes."""
    held = io.BytesIO()
    # Nothing of the program's version or of the time.
    figure.savefig(held, format="png", dpi=DPI, metadata={"Software": None})
    return held.getvalue()


def room(values: Iterable[float | None]) -> dict[str, list[float]]:
    """The range of a Plotly axis whose values are all one, which Plotly would show from one less to
    one more; empty for others, whose range it finds itself."""
    known = {round(each, 9) for each in values if each is not None}
    if len(known) != 1:
        return {}
    (value,) = known
    around = 0.05 * abs(value) or 1.0
    return {"range": [value - around, value + around]}


def plots(
    width: float, height: float, title: str, abreast: int = 1
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of about so many inches with plots that share their vertical axis."""
    figure = Figure(
        figsize=(min(max(width, 8.0), WIDEST), min(max(height, 2.5), TALLEST)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    each = figure.subplots(1, abreast, sharey=True, squeeze=False)[0]
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10)
    for axes in each:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, list(each)


def plot(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of about so many inches with one plot."""
    figure, (axes,) = plots(width, height, title)
    return figure, axes


def ticks(
    axes: Axes, which: str, at: Sequence[float], labels: Sequence[str], rotation: float = 0
) -> None:
    """Ticks with these names on the axis `x` or `y`."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    # A name is not to be read as matplotlib's mathematics.
    axis.set_ticks(
        list(at), list(labels), fontsize=8, rotation=rotation,
        ha="right" if which == "y" or rotation else "center", parse_math=False,
    )  # fmt: skip


def thinned(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Places and names of at most `most` of them, evenly spaced."""
    step = max(-(-len(names) // most), 1)
    at = list(range(0, len(names), step))
    return at, [names[place] for place in at]


def plain(text: str) -> str:
    """A text that matplotlib reads as it stands."""
    return text.replace("$", r"\$")
