"""How far the dominant rows of several tasks on one base are the same (PiLoRA, section 4.4).

The paper lays the patterns of its tasks side by side and finds that related tasks overlap. Here it
is a number, the Jaccard index: rows that are dominant in both, of those that are in either. Chance
is what rows drawn at random would give, as many of each module as are dominant: of a and b among n
rows, a * b / n are expected in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search.reports.colours import style_of
from search.reports.drawing import plain, plot, thinned, ticks
from search.reports.panel import Absent, Panel
from search.reports.papers.others import OtherProfile
from search.reports.papers.rows import dominant_masks
from search.reports.profile_figures import ProfileReport
from search.reports.sweep.measured import label
from search.wording import percent
from spaces.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERLAP = "dominant-overlap", "Overlap of dominant rows between tasks (PiLoRA)"
ALL = "all"
_LABELLED = 40


@dataclass(frozen=True)
class Overlap:
    """How far two tasks' dominant rows are the same: shares of the rows dominant in either."""

    jaccard: float
    chance: float


def overlap_panel(
    profile: Profile, report: ProfileReport, others: Sequence[OtherProfile]
) -> Panel | Absent:
    """The overlap with every other task, layer by layer and over all."""
    if not others:
        return Absent(*OVERLAP, "the store has no profile of another task on this base")
    own = dominant_masks(profile)
    layers = {
        target.name: module.layer
        for target, module in zip(profile.targets, report.modules, strict=True)
    }
    found: dict[str, dict[str, Overlap]] = {}
    for other in others:
        name = other.task
        while name in found:  # another version of its rows
            name += "'"
        if by_layer := overlaps(own, dominant_masks(other.profile), layers):
            found[name] = by_layer
    if not found:
        why = "no module has dominant rows both here and in another task's profile"
        return Absent(*OVERLAP, why)
    drawn = _Drawn([layer for layer in report.layers if any(layer in o for o in found.values())],
                   found)  # fmt: skip
    told = "; ".join(
        f"{name} {percent(round(by[ALL].jaccard, 3))} (by chance "
        f"{percent(round(by[ALL].chance, 3))})"
        for name, by in found.items()
    )
    return Panel(
        *OVERLAP,
        says=(
            "Of the rows that are dominant in this task or the other, so many are in both: "
            f"{told}. Above the dotted line the tasks agree on more rows than chance has them."
        ),
        columns=["task", "layer", "jaccard", "by_chance"],
        rows=[
            [name, layer, round(each.jaccard, 4), round(each.chance, 4)]
            for name, by in found.items()
            for layer, each in by.items()
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


def overlaps(
    one: Mapping[str, NDArray[np.bool_]],
    other: Mapping[str, NDArray[np.bool_]],
    layers: Mapping[str, str],
) -> dict[str, Overlap]:
    """Layer, and `all`, -> overlap of two tasks' dominant rows, masks bool [out] by module.

    Counts are added up over the modules that both have in one size; a layer without a dominant row
    is left out.
    """
    counts: dict[str, NDArray[np.float64]] = {}
    for name, ours in one.items():
        theirs = other.get(name)
        if theirs is None or theirs.shape != ours.shape or not ours.size:
            continue
        both, a, b = int(np.sum(ours & theirs)), int(ours.sum()), int(theirs.sum())
        expected = a * b / ours.size
        each = np.array([both, a + b - both, expected, a + b - expected], dtype=np.float64)
        for place in (layers[name], ALL):
            counts[place] = counts.get(place, 0.0) + each
    return {
        place: Overlap(float(both / either), float(expected / of))
        for place, (both, either, expected, of) in counts.items()
        if either
    }


@dataclass(frozen=True)
class _Drawn:
    layers: Sequence[str]
    found: Mapping[str, Mapping[str, Overlap]]

    def _lines(self, by: Mapping[str, Overlap]) -> tuple[list[float | None], list[float | None]]:
        known = [by.get(layer) for layer in self.layers]
        return (
            [None if each is None else round(100 * each.jaccard, 2) for each in known],
            [None if each is None else round(100 * each.chance, 2) for each in known],
        )

    def printed(self) -> Figure:
        figure, axes = plot(
            3.0 + 0.28 * len(self.layers), 4.0, "Dominant rows in both tasks, of those in either"
        )
        look = style_of(list(self.found))
        places = range(len(self.layers))
        for name, by in self.found.items():
            jaccard, chance = (
                np.array(each, dtype=np.float64)  # None becomes NaN, a gap
                for each in self._lines(by)
            )
            colour = look[name].colour_light
            marker = look[name].marker_matplotlib
            axes.plot(places, jaccard, color=colour, marker=marker, label=plain(name))
            axes.plot(places, chance, ":", color=colour, label=plain(f"{name}, by chance"))
        ticks(axes, "x", *thinned(self.layers, _LABELLED))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer")
        axes.set_ylabel("% (Jaccard index)")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        look = style_of(list(self.found))
        layers = [label(layer) for layer in self.layers]
        data: list[dict[str, Any]] = []
        for name, by in self.found.items():
            jaccard, chance = self._lines(by)
            colour = look[name].colour
            data.append(
                {"type": "scatter", "mode": "lines+markers", "x": layers, "y": jaccard,
                 "name": label(name), "line": {"color": colour},
                 "marker": {"symbol": look[name].symbol_plotly, "size": 8},
                 "hovertemplate": f"{label(name)}, layer %{{x}}: %{{y:.1f}}%<extra></extra>"}
            )  # fmt: skip
            data.append(
                {"type": "scatter", "mode": "lines", "x": layers, "y": chance,
                 "name": f"{label(name)}, by chance", "line": {"color": colour, "dash": "dot"},
                 "hovertemplate": f"{label(name)}, by chance, layer %{{x}}: %{{y:.1f}}%"
                                  "<extra></extra>"}
            )  # fmt: skip
        layout = {
            "height": 380,
            "xaxis": {"type": "category", "title": {"text": "layer"}, "automargin": True},
            "yaxis": {
                "title": {"text": "% in both"}, "rangemode": "tozero", "automargin": True,
            },
            "legend": {"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
        }  # fmt: skip
        return {"data": data, "layout": layout}
