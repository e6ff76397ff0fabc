"""The metric on dev over the epochs of each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from search.queries.sweep_record import CurvePoint, SweepRecord
from search.reports.colours import NOISE
from search.reports.drawing import plot
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import arm_of, better, label, styles
from search.reports.words import change, plural, sentence
from search.tracking.facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "learning-curves", "Learning curves"
COLUMNS = ("trial", "arm", "state", "epoch", "metric", "is best epoch", "is last")


@dataclass(frozen=True)
class Curve:
    """A trial's points, of which the `peak` is the best; `stands_out` is the best of an arm."""

    run: RunFacts
    points: Sequence[CurvePoint]
    peak: CurvePoint
    stands_out: bool

    @property
    def last(self) -> CurvePoint:
        """After its last epoch: what a trial counts by."""
        return self.points[-1]


def curves_panel(record: SweepRecord) -> Panel | Absent:
    """Of every trial where they are few, else of those that stand out."""
    firsts = {row.run_id for row in record.best}
    gain = record.objective.gain
    curves = [
        Curve(
            run,
            points,
            max(points, key=lambda point: gain(point.value)),
            run.run_id in firsts,
        )
        for run in record.trials
        if (points := record.curves.get(run.run_id))
    ]
    if not curves:
        return Absent(KEY, TITLE, "no trial has reported an epoch yet")
    metric = record.objective.metric
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, curves),
        columns=tuple(metric if name == "metric" else name for name in COLUMNS),
        rows=[
            (each.run.number, arm_of(each.run), each.run.status, point.epoch, point.value,
             point is each.peak, point is each.last)
            for each in curves
            for point in each.points
        ],
        printed=lambda: _printed(record, curves),
        brushed=lambda: _brushed(record, curves),
    )  # fmt: skip


def _says(record: SweepRecord, curves: Sequence[Curve]) -> str:
    metric, gain = record.objective.metric, record.objective.gain
    started = sum(bool(each.metrics) for each in record.trials)
    told = f"{metric} on dev after each epoch of {plural(len(curves), 'trial')}"
    if len(curves) < started:
        told += f" of {started:,}: the best of each method, the best of all and an even sample"
    whole = [each for each in curves if each.run.status == "complete" and len(each.points) > 1]
    early = [each for each in whole if gain(each.peak.value) > gain(each.last.value)]
    told += "; the best of each method is bold, its best epoch open, its last filled."
    if not whole:
        return sentence(told)
    if not early:
        told += " Every complete trial was best at its end, so longer training may help."
        return sentence(told)
    lost = max(early, key=lambda each: gain(each.peak.value) - gain(each.last.value))
    rest = len(whole) - len(early)
    return sentence(
        f"{told} {plural(len(early), 'complete trial')} of {len(whole):,} had a better epoch "
        f"before the last, at most {change(lost.peak.value - lost.last.value)} (trial "
        f"{lost.run.number}); {plural(rest, 'was', 'were')} best at the end."
    )


def _brushed(record: SweepRecord, curves: Sequence[Curve]) -> Mapping[str, Any]:
    look, metric = styles(record), label(record.objective.metric)
    faint: dict[str, tuple[list[float | None], list[float | None], list[str]]] = {}
    for each in curves:
        if not each.stands_out:
            xs, ys, names = faint.setdefault(arm_of(each.run), ([], [], []))
            xs += [*(point.epoch for point in each.points), None]
            ys += [*(round(point.value, 6) for point in each.points), None]
            names += [f"trial {each.run.number}, {each.run.status}"] * (len(each.points) + 1)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "x": xs, "y": ys, "text": names,
            "name": label(arm), "legendgroup": arm, "showlegend": False, "opacity": 0.35,
            "line": {"color": look[arm].colour, "width": 1},
            "marker": {"size": 3.5, "symbol": look[arm].symbol_plotly},
            "hovertemplate": f"{label(arm)}, %{{text}}<br>epoch %{{x}}: {metric} %{{y:.4f}}"
            "<extra></extra>",
        }
        for arm, (xs, ys, names) in faint.items()
    ]  # fmt: skip
    for each in (curve for curve in curves if curve.stands_out):
        arm = arm_of(each.run)
        style = look[arm]
        symbols = [
            style.symbol_plotly + ("-open" if point is each.peak and point is not each.last else "")
            for point in each.points
        ]
        sizes = [11 if point in (each.peak, each.last) else 6 for point in each.points]
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": label(arm), "legendgroup": arm,
                "x": [point.epoch for point in each.points],
                "y": [round(point.value, 6) for point in each.points],
                "line": {"color": style.colour, "width": 3},
                "marker": {"symbol": symbols, "size": sizes, "color": style.colour,
                           "line": {"width": 2, "color": style.colour}},
                "hovertemplate": f"{label(arm)}, trial {each.run.number}<br>epoch %{{x}}: {metric} "
                "%{y:.4f}<extra></extra>",
            }
        )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "height": 440,
            "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero", **_whole(curves)},
            "yaxis": {"title": {"text": f"{metric} on dev ({better(record.objective)})"}},
        },
    }


def _whole(curves: Sequence[Curve]) -> dict[str, Any]:
    most = max(each.last.epoch for each in curves)
    return {"dtick": 1} if most <= 12 else {}


def _printed(record: SweepRecord, curves: Sequence[Curve]) -> Figure:
    look = styles(record)
    figure, axes = plot(8.0, 4.4, f"{TITLE} (dev)")
    for each in sorted(curves, key=lambda curve: curve.stands_out):
        arm = arm_of(each.run)
        style = look[arm]
        xs, ys = [p.epoch for p in each.points], [p.value for p in each.points]
        if not each.stands_out:
            axes.plot(xs, ys, color=style.colour_light, linewidth=0.7, alpha=0.35,
                      marker=style.marker_matplotlib, markersize=2)  # fmt: skip
            continue
        axes.plot(xs, ys, color=style.colour_light, linewidth=2.2, label=arm,
                  marker=style.marker_matplotlib, markersize=3.5)  # fmt: skip
        for point, fill in ((each.peak, "white"), (each.last, style.colour_light)):
            axes.plot(point.epoch, point.value, style.marker_matplotlib, markersize=8, mew=1.5,
                      markerfacecolor=fill, markeredgecolor=style.colour_light)  # fmt: skip
    axes.set_xlabel("epoch (open: best, filled: last)")
    axes.set_ylabel(f"{record.objective.metric} ({better(record.objective)})", parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.92")
    if any(each.stands_out for each in curves):
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.set_title("no trial is complete", fontsize=8, color=NOISE[0])
    return figure
