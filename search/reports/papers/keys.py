"""The metric against one key of the trials' choices (PiLoRA, Fig. 4 to 6; TASO, Fig. 4).

The papers vary one key and hold the others. In a sweep the others vary too, so a figure shows every
trial, and their mean where several share a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from search.queries.sweep_record import SweepRecord
from search.reports.colours import NOISE, ArmStyle, both
from search.reports.drawing import plain, plots, ticks
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import (
    arm_of,
    better,
    choices_of,
    complete,
    label,
    styles,
    tuned_lora,
)
from search.reports.words import listed, plural, value
from search.tracking.facts import RunFacts, flattened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 12
_BESIDE = 0.09
"""How far arms stand apart where they share a value, of the distance between values."""


@dataclass(frozen=True)
class KeyFigure:
    """What one figure shows.

    `of` takes a trial's flat choice and its run, and gives its place, None where it has none.
    `facet_of` names the part of the figure that a trial is in. `is_whole` says that places are
    whole numbers, `is_log` that they are drawn by their logarithms, `percent` that they are shares.
    """

    key: str
    title: str
    axis: str
    methods: tuple[str, ...]
    of: Callable[[Mapping[str, Any], RunFacts], float | None]
    facet_of: Callable[[Mapping[str, Any]], str] = lambda choice: ""
    is_whole: bool = False
    is_log: bool = False
    percent: bool = False


@dataclass(frozen=True)
class _Point:
    arm: str
    facet: str
    place: float
    value: float
    number: int


def _threshold(choice: Mapping[str, Any], run: RunFacts) -> float | None:
    return None if choice.get("partition.rule") == "all" else choice.get("partition.threshold")


def _dominant_share(choice: Mapping[str, Any], run: RunFacts) -> float | None:
    return None if run.features is None else run.features.get("dominant_rows")


FIGURES = (
    KeyFigure(
        "supplementary-rank",
        "Metric over the supplementary rank (PiLoRA, Fig. 4)",
        "supplementary rank r'",
        ("pilora", "joint"),
        lambda choice, run: choice.get("supplementary_rank"),
        is_whole=True,
    ),
    KeyFigure(
        "dominant-rank",
        "Metric over the dominant rank (PiLoRA, Fig. 5)",
        "rank r of the dominant rows",
        ("pilora",),
        lambda choice, run: choice.get("rank"),
        is_whole=True,
    ),
    KeyFigure(
        "threshold",
        "Metric over the threshold, by partition rule (PiLoRA, Fig. 6)",
        "threshold",
        ("pilora", "joint"),
        _threshold,
        lambda choice: str(choice.get("partition.rule")),
    ),
    KeyFigure(
        "dominant-share",
        "Metric over the share of dominant rows (PiLoRA, Fig. 6)",
        "dominant rows, mean over modules",
        ("pilora", "joint"),
        _dominant_share,
        percent=True,
    ),
    KeyFigure(
        "retention",
        "Metric over retention (TASO, Fig. 4)",
        "retention p",
        ("taso", "joint"),
        lambda choice, run: choice.get("retention"),
        is_log=True,
        percent=True,
    ),
)


def key_panel(record: SweepRecord, figure: KeyFigure) -> Panel | Absent:
    """The trials of the figure's methods over its key, each at its dev metric after all epochs."""
    every = [run for run in complete(record) if run.method in figure.methods]
    standing = [run for run in every if not run.collapsed]
    points = []
    for run in standing:
        choice = flattened(run.choice or {})
        if (place := figure.of(choice, run)) is not None:
            points.append(
                _Point(
                    arm_of(run),
                    figure.facet_of(choice),
                    float(place),
                    run.metrics[record.objective.metric],
                    run.number or 0,
                )
            )
    names = " or ".join(figure.methods)
    if not points:
        why = f"no trial of {names} ran to its end and has a {figure.axis.partition(',')[0]}"
        return Absent(figure.key, figure.title, why)
    if len({point.place for point in points}) == 1:
        (place,) = {point.place for point in points}
        one = _shown(figure, place)
        return Absent(
            figure.key, figure.title, f"all {len(points)} trials of {names} have the same, {one}"
        )
    fallen = len(every) - len(standing)
    lora = tuned_lora(choices_of(record))
    drawn = _Drawn(record, figure, points, None if lora is None else lora.seeds.mean)
    return Panel(
        figure.key,
        figure.title,
        says=_says(drawn, fallen),
        columns=["arm", "trial", *(["rule"] if drawn.facets != [""] else []), figure.axis,
                 record.objective.metric],
        rows=[
            [p.arm, p.number, *([p.facet] if drawn.facets != [""] else []), p.place, p.value]
            for p in sorted(points, key=lambda p: (p.arm, p.facet, p.place))
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )  # fmt: skip


def _says(drawn: _Drawn, fallen: int) -> str:
    objective, figure = drawn.record.objective, drawn.figure
    best = max(drawn.points, key=lambda p: objective.gain(p.value))
    by = f", by rule {best.facet}" if best.facet else ""
    told = (
        f"{plural(len(drawn.points), 'trial')} of {listed(sorted(drawn.arms))} on dev, with other "
        f"keys varying beside it. The best, {value(best.value)} ({best.arm}, trial {best.number}), "
        f"is at {_shown(figure, best.place)}{by}"
    )
    if drawn.lora is not None:
        told += f"; tuned LoRA reaches {value(drawn.lora)}"
    if means := drawn.means():
        told += ". Means of several trials: " + ", ".join(
            f"{value(mean.mean)} at {_shown(figure, mean.place)} ({mean.arm}, {mean.count} trials)"
            for mean in sorted(means, key=lambda mean: (mean.place, mean.arm))[:8]
        )
        told += " and more" if len(means) > 8 else ""
    if fallen:
        told += f". Left out: {plural(fallen, 'trial')} that came to one class alone"
    return f"{told}."


def _shown(figure: KeyFigure, place: float) -> str:
    return f"{100 * place:.3g}%" if figure.percent else f"{place:.3g}"


@dataclass(frozen=True)
class _Mean:
    arm: str
    facet: str
    place: float
    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class _Drawn:
    record: SweepRecord
    figure: KeyFigure
    points: Sequence[_Point]
    lora: float | None

    @property
    def arms(self) -> list[str]:
        return [arm for arm in styles(self.record) if any(p.arm == arm for p in self.points)]

    @property
    def facets(self) -> list[str]:
        return sorted({point.facet for point in self.points})

    def means(self) -> list[_Mean]:
        """Of each place that several trials of an arm share."""
        shared: dict[tuple[str, str, float], list[float]] = {}
        for p in self.points:
            shared.setdefault((p.arm, p.facet, p.place), []).append(p.value)
        return [
            _Mean(*key, fmean(values), stdev(values), len(values))
            for key, values in shared.items()
            if len(values) > 1
        ]

    def drawn_at(self, arm: str, place: float) -> float:
        """Where an arm's trials of a place stand: beside those of the others where it is whole."""
        if not self.figure.is_whole:
            return place
        shift = self.arms.index(arm) - (len(self.arms) - 1) / 2
        return round(place + shift * _BESIDE * self._step, 3)

    @property
    def _step(self) -> float:
        """The least distance between two places."""
        places = sorted({p.place for p in self.points})
        return min(b - a for a, b in pairwise(places))

    @property
    def span(self) -> tuple[float, float]:
        """What every part of the figure shows of the axis; by their logarithms where it has such.

        A little more than the places take.
        """
        places = [p.place for p in self.points]
        low, high = min(places), max(places)
        if self.figure.is_log:
            low, high = math.log10(low), math.log10(high)
        beside = max(0.06 * (high - low), self._step / 2 if self.figure.is_whole else 0.0)
        return low - beside, high + beside

    def at(self) -> list[float] | None:
        """The ticks, where they are not left to the plotter."""
        places = sorted({p.place for p in self.points})
        if self.figure.is_whole and len(places) <= _MOST_TICKS:
            return places
        if self.figure.is_log:
            inner = [m * 10**e for e in range(-6, 2) for m in (1, 2, 5)]
            low, high = self.span
            return [t for t in inner if low <= math.log10(t) <= high] or places
        return None

    # -- printed -----------------------------------------------------------------------------------

    def printed(self) -> Figure:
        figure, each = plots(3.0 + 3.2 * len(self.facets), 4.2, self.figure.title, len(self.facets))
        look = styles(self.record)
        for axes, facet in zip(each, self.facets, strict=True):
            if facet:
                axes.set_title(plain(f"rule {facet}"), fontsize=9)
            if self.figure.is_log:
                axes.set_xscale("log")
                axes.minorticks_off()
            if self.lora is not None:
                axes.axhline(self.lora, color=NOISE[0], linestyle="--", linewidth=1.2, zorder=0,
                             label="tuned LoRA")  # fmt: skip
            for arm in self.arms:
                self._print_arm(axes, facet, arm, look[arm])
            low, high = self.span
            axes.set_xlim(*((10**low, 10**high) if self.figure.is_log else (low, high)))
            if (at := self.at()) is not None:
                ticks(axes, "x", at, [_shown(self.figure, place) for place in at])
            elif self.figure.percent:
                axes.xaxis.set_major_formatter(lambda place, _: _shown(self.figure, place))
            axes.set_xlabel(plain(self.figure.axis))
            axes.grid(axis="y", color="0.92")
        objective = self.record.objective
        each[0].set_ylabel(f"{objective.metric} ({better(objective)})", parse_math=False)
        told: dict[str, Any] = {}
        for axes in each:
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                told.setdefault(name, handle)
        figure.legend(
            list(told.values()), list(told), loc="outside lower center", ncols=4, frameon=False,
            fontsize=8,
        )  # fmt: skip
        return figure

    def _print_arm(self, axes: Axes, facet: str, arm: str, style: ArmStyle) -> None:
        points = [p for p in self.points if (p.arm, p.facet) == (arm, facet)]
        axes.plot(
            [self.drawn_at(arm, p.place) for p in points], [p.value for p in points],
            style.marker_matplotlib, color=style.colour_light, label=plain(arm), markersize=5.5,
            alpha=0.8, markeredgewidth=0,
        )  # fmt: skip
        means = [m for m in self.means() if (m.arm, m.facet) == (arm, facet)]
        if means:
            axes.errorbar(
                [self.drawn_at(arm, m.place) for m in means], [m.mean for m in means],
                [m.deviation for m in means], fmt="_", color=style.colour_light, markersize=14,
                capsize=4, linewidth=1.2, label=plain(f"{arm}, mean and deviation"),
            )  # fmt: skip

    # -- to be moved over --------------------------------------------------------------------------

    def brushed(self) -> Mapping[str, Any]:
        look, metric = styles(self.record), self.record.objective.metric
        data: list[dict[str, Any]] = []
        for place, facet in enumerate(self.facets):
            axes = {"xaxis": "x" if place == 0 else f"x{place + 1}"}
            for arm in self.arms:
                points = [p for p in self.points if (p.arm, p.facet) == (arm, facet)]
                if points:
                    data.append(self._marks(arm, points, look[arm], metric) | axes)
                means = [m for m in self.means() if (m.arm, m.facet) == (arm, facet)]
                if means:
                    data.append(self._mean_marks(arm, means, look[arm]) | axes)
        shown: set[str] = set()
        for trace in data:  # a name stands in the legend once
            trace["showlegend"] = trace["name"] not in shown
            shown.add(trace["name"])
        return {"data": data, "layout": self._layout()}

    def _marks(
        self, arm: str, points: Sequence[_Point], style: ArmStyle, metric: str
    ) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "markers", "name": label(arm), "legendgroup": label(arm),
            "x": [rounded_place(self.drawn_at(arm, p.place)) for p in points],
            "y": [round(p.value, 6) for p in points],
            "text": [f"trial {p.number}, {_shown(self.figure, p.place)}" for p in points],
            "hovertemplate": (
                f"{label(arm)}, %{{text}}<br>{label(metric)} %{{y:.4f}}<extra></extra>"
            ),
            "marker": {"color": style.colour, "symbol": style.symbol_plotly, "size": 9,
                       "opacity": 0.85},
        }  # fmt: skip

    def _mean_marks(self, arm: str, means: Sequence[_Mean], style: ArmStyle) -> dict[str, Any]:
        name = f"{label(arm)}, mean and deviation"
        return {
            "type": "scatter", "mode": "markers", "name": name, "legendgroup": label(arm),
            "x": [rounded_place(self.drawn_at(arm, m.place)) for m in means],
            "y": [round(m.mean, 6) for m in means],
            "text": [f"mean of {m.count} at {_shown(self.figure, m.place)}" for m in means],
            "hovertemplate": f"{label(arm)}, %{{text}}<br>%{{y:.4f}}<extra></extra>",
            "marker": {"symbol": "line-ew-open", "size": 16, "color": style.colour,
                       "line": {"width": 2}},
            "error_y": {"type": "data", "array": [round(m.deviation, 6) for m in means],
                        "color": style.colour, "thickness": 1.2, "width": 5},
        }  # fmt: skip

    def _layout(self) -> dict[str, Any]:
        objective, count = self.record.objective, len(self.facets)
        axis: dict[str, Any] = {
            "automargin": True,
            "zeroline": False,
            "title": {"text": label(self.figure.axis)},
            "range": [rounded_place(each) for each in self.span],
        }
        if self.figure.is_log:
            axis["type"] = "log"
        if (at := self.at()) is not None:
            axis |= {"tickvals": at, "ticktext": [_shown(self.figure, place) for place in at]}
        elif self.figure.percent:
            axis["tickformat"] = ".0%"
        layout: dict[str, Any] = {
            "height": 420,
            "yaxis": {
                "title": {"text": f"{label(objective.metric)} on dev ({better(objective)})"},
                "automargin": True,
            },
            "legend": {"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
            "shapes": [],
            "annotations": [],
        }
        for place, facet in enumerate(self.facets):
            name = "xaxis" if place == 0 else f"xaxis{place + 1}"
            low, high = place / count + 0.02 * (place > 0), (place + 1) / count
            layout[name] = {**axis, "domain": [round(low, 4), round(high, 4)]}
            if facet:
                layout["annotations"].append(
                    {"text": label(f"rule {facet}"), "x": (low + high) / 2, "y": 1, "xref": "paper",
                     "yref": "paper", "showarrow": False, "yanchor": "bottom"}
                )  # fmt: skip
        if self.lora is not None:
            line = {"color": both(*NOISE), "width": 1.5, "dash": "dash"}
            layout["shapes"].append(
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": self.lora,
                 "y1": self.lora, "line": line}
            )  # fmt: skip
            layout["annotations"].append(
                {"xref": "paper", "x": 1, "y": self.lora, "text": f"tuned LoRA {value(self.lora)}",
                 "showarrow": False, "xanchor": "right", "yanchor": "bottom",
                 "font": {"color": both(*NOISE)}}
            )  # fmt: skip
        return layout


def rounded_place(place: float) -> float:
    """A place to five significant digits, as a page holds it."""
    return float(f"{place:.5g}")
