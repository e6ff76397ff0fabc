"""What was chosen against what came of it: a line for every trial, to be brushed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex

from search.queries.sweep_record import SweepRecord
from search.reports.colours import both
from search.reports.drawing import plot
from search.reports.panel import Absent, Cell, Panel
from search.reports.sweep.measured import arm_of, arms_of, complete, keys_of, label
from search.reports.words import plural, short_count, value
from search.tracking.facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "choices", "What was chosen, and what came of it"
MOST_AXES = 12
MOST_NAMES = 30
"""Values of an axis that are named each; more are numbered."""
_APART = 0.12
"""How far below an axis' values, of their range, those stand that have no such key."""
_NONE = "none"


@dataclass(frozen=True)
class Axis:
    """One upright axis: each trial's place on it, and what stands at which place."""

    name: str
    places: Sequence[float]
    ticks: Sequence[tuple[float, str]]


def choices_panel(record: SweepRecord) -> Panel | Absent:
    """Every trial that ran to its end."""
    runs = complete(record)
    if not runs:
        return Absent(KEY, TITLE, "no trial has run to its end")
    metric = record.objective.metric
    told = [keys_of(run.choice or {}) for run in runs]
    names = list(dict.fromkeys(key for each in told for key in each))
    rows: list[Sequence[Cell]] = [
        (run.number, arm_of(run), run.metrics[metric], _params(run),
         *(_cell(each.get(name)) for name in names))
        for run, each in zip(runs, told, strict=True)
    ]  # fmt: skip
    axes, left_out = axes_of(record, runs)
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, runs, axes, left_out),
        columns=("trial", "arm", metric, "parameters", *names),
        rows=rows,
        printed=lambda: _printed(record, runs, axes),
        brushed=lambda: _brushed(record, runs, axes),
    )


def axes_of(record: SweepRecord, runs: Sequence[RunFacts]) -> tuple[list[Axis], list[str]]:
    """The axes from the left, the metric last, and the keys that there is no room for.

    A key that all who have it have alike is no axis. Those that most trials have come first.
    """
    metric = record.objective.metric
    told = [keys_of(run.choice or {}) for run in runs]
    having: dict[str, int] = {}
    for each in told:
        for key in each:
            having[key] = having.get(key, 0) + 1
    varied = [key for key in having if len({_text(each[key]) for each in told if key in each}) > 1]
    varied.sort(key=lambda key: (key != "learning_rate", -having[key]))
    kept, left_out = varied[: MOST_AXES - 3], varied[MOST_AXES - 3 :]
    found = [
        _named("method", [arm_of(run) for run in runs], arms_of(record)),
        _numbers("parameters", [float(_params(run)) for run in runs]),
        *(_axis(key, [each.get(key) for each in told]) for key in kept),
        _numbers(metric, [run.metrics[metric] for run in runs], log=False),
    ]
    return found, left_out


def _axis(name: str, values: Sequence[Any]) -> Axis:
    given = [each for each in values if each is not None]
    if all(isinstance(each, int | float) and not isinstance(each, bool) for each in given):
        return _numbers(name, [None if each is None else float(each) for each in values])
    return _named(name, [None if each is None else _text(each) for each in values])


def _numbers(name: str, values: Sequence[float | None], log: bool | None = None) -> Axis:
    given = sorted({each for each in values if each is not None and math.isfinite(each)})
    low, high = given[0], given[-1]
    log = (low > 0 and high / low >= 10) if log is None else log
    scale = math.log10 if log else float
    places: list[float] = [math.nan if v is None else round(scale(v), 5) for v in values]
    bottom, top = scale(low), scale(high)
    ticks = [(round(scale(each), 5), _tick(each)) for each in _steps(given, log)]
    if None in values:
        apart = bottom - _APART * max(top - bottom, 1e-9 if top > bottom else 1.0)
        places = [apart if math.isnan(each) else each for each in places]
        ticks = [(apart, _NONE), *ticks]
    return Axis(name, places, ticks)


def _named(name: str, values: Sequence[str | None], order: Sequence[str] = ()) -> Axis:
    given = {each for each in values if each is not None}
    names = [*(each for each in order if each in given), *sorted(given - set(order))]
    if None in values:
        names = [_NONE, *names]
    at = {each: float(place) for place, each in enumerate(names)}
    step = -(-len(names) // MOST_NAMES)
    ticks = [(at[each], each) for each in names[::step]]
    return Axis(name, [at[_NONE if each is None else each] for each in values], ticks)


def _steps(given: Sequence[float], log: bool) -> list[float]:
    """Values to be named: all where they are few, else round ones."""
    if len(given) <= 8:
        return list(given)
    low, high = given[0], given[-1]
    if not log:
        return [float(each) for each in np.linspace(low, high, 6)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return [low, *(each for each in round_ones if each > 1.3 * low and 1.3 * each < high), high]


def _tick(number: float) -> str:
    return short_count(number) if number >= 1000 else f"{number:.3g}"


def _params(run: RunFacts) -> int:
    return int(run.metrics.get("trainable_params", 0)) or 1


def _text(each: Any) -> str:
    return str(each)


def _cell(each: Any) -> Cell:
    return each if isinstance(each, str | int | float | bool) or each is None else str(each)


def _says(
    record: SweepRecord, runs: Sequence[RunFacts], axes: Sequence[Axis], left_out: Sequence[str]
) -> str:
    objective = record.objective
    best = max(runs, key=lambda run: objective.gain(run.metrics[objective.metric]))
    worst = min(runs, key=lambda run: objective.gain(run.metrics[objective.metric]))
    told = (
        f"A line is one of {plural(len(runs), 'trial')} that ran to their end, through what was "
        f"chosen to {objective.metric} on dev: from {value(worst.metrics[objective.metric])} to "
        f"{value(best.metrics[objective.metric])} (trial {best.number}, {arm_of(best)}). "
        "Drag along an axis to keep only the lines through it."
    )
    if any(text == _NONE for axis in axes for _, text in axis.ticks):
        told += ' "none" is where the method has no such key.'
    if left_out:
        told += f" {plural(len(left_out), 'more key')} are in the CSV alone."
    return told


def _brushed(
    record: SweepRecord, runs: Sequence[RunFacts], axes: Sequence[Axis]
) -> Mapping[str, Any]:
    dimensions = []
    for axis in axes:
        places = [*axis.places, *(at for at, _ in axis.ticks)]
        dimensions.append(
            {
                "label": label(_short(axis.name, axes)),
                "values": list(axis.places),
                "range": [min(places), max(places) if max(places) > min(places) else 1],
                "tickvals": [at for at, _ in axis.ticks],
                "ticktext": [label(text) for _, text in axis.ticks],
            }
        )
    low, high = _colour_range(record, runs)
    return {
        "data": [
            {
                "type": "parcoords",
                "line": {
                    "color": [round(run.metrics[record.objective.metric], 6) for run in runs],
                    "colorscale": _colour_scale(record.objective.mode == "min"),
                    "cmin": low,
                    "cmax": high,
                },
                "dimensions": dimensions,
                "unselected": {"line": {"opacity": 0.05}},
                "labelside": "top",
            }
        ],
        "layout": {
            "height": 460,
            "margin": {"l": 70, "r": 70, "t": 70, "b": 30},
            "meta": {"least_width": 92 * len(axes)},
        },
    }


def _grades(less_is_better: bool) -> list[tuple[str, str]]:
    """Nine grades of viridis from the lowest to the highest metric, on light and on dark: the best
    stands out most from its ground."""
    shown = np.linspace(0, 1, 9)
    light = [to_hex(colormaps["viridis"](0.86 - 0.86 * at)) for at in shown]
    dark = [to_hex(colormaps["viridis"](0.28 + 0.72 * at)) for at in shown]
    grades = list(zip(light, dark, strict=True))
    return grades[::-1] if less_is_better else grades


def _colour_scale(less_is_better: bool) -> list[list[Any]]:
    grades = _grades(less_is_better)
    return [[at / (len(grades) - 1), both(*each)] for at, each in enumerate(grades)]


def _short(name: str, axes: Sequence[Axis]) -> str:
    """The name of an axis, without its section where no other has the same."""
    own = name.rpartition(".")[2]
    alone = sum(each.name.rpartition(".")[2] == own for each in axes) == 1
    return (own if alone else name).replace("_", " ")


def _colour_range(record: SweepRecord, runs: Sequence[RunFacts]) -> tuple[float, float]:
    """The colours spread over the better part, for one that has collapsed lies far off."""
    values = np.array([run.metrics[record.objective.metric] for run in runs])
    low, high = float(values.min()), float(values.max())
    if record.objective.mode == "max":
        low = float(np.quantile(values, 0.1))
    else:
        high = float(np.quantile(values, 0.9))
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _printed(record: SweepRecord, runs: Sequence[RunFacts], axes: Sequence[Axis]) -> Figure:
    figure, plane = plot(max(8.0, 0.95 * len(axes)), 4.6, TITLE)
    metric = record.objective.metric
    scaled, ranges = [], []
    for axis in axes:
        places = [*axis.places, *(at for at, _ in axis.ticks)]
        low, high = min(places), max(places)
        high = high if high > low else low + 1
        ranges.append((low, high))
        scaled.append((np.array(axis.places) - low) / (high - low))
    values = np.array([run.metrics[metric] for run in runs])
    order = np.argsort(values if record.objective.mode == "max" else -values)  # the best on top
    lines = np.array(scaled).T[order]
    at = np.arange(len(axes))
    scale = Normalize(*_colour_range(record, runs), clip=True)
    colours = LinearSegmentedColormap.from_list(
        "ours", [colour for colour, _ in _grades(record.objective.mode == "min")]
    )
    plane.add_collection(
        LineCollection(
            [np.column_stack([at, line]) for line in lines],
            colors=colours(scale(values[order])),
            linewidths=1.2 if len(runs) <= 300 else 0.4,
            alpha=0.8 if len(runs) <= 300 else 0.3,
            rasterized=True,
        )
    )
    for place, (axis, (low, high)) in enumerate(zip(axes, ranges, strict=True)):
        plane.axvline(place, color="0.4", linewidth=0.8)
        for tick, text in axis.ticks:
            plane.annotate(
                text[:18], (place, (tick - low) / (high - low)), xytext=(3, 0), fontsize=6.5,
                textcoords="offset points", va="center", parse_math=False,
                bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.75},
            )  # fmt: skip
    plane.set_xlim(-0.1, len(axes) - 0.4)
    plane.set_ylim(-0.04, 1.04)
    plane.set_xticks(
        at, [_short(axis.name, axes).replace(" ", "\n") for axis in axes], fontsize=7.5,
        parse_math=False,
    )  # fmt: skip
    plane.set_yticks([])
    for side in ("left", "bottom"):
        plane.spines[side].set_visible(False)
    return figure
