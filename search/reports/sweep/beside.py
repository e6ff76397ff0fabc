"""Each method's best beside tuned LoRA: on test as confirmed, else on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.queries.comparison import Confirmation
from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, NOISE, both
from search.reports.drawing import plot
from search.reports.panel import Absent, Cell, Panel
from search.reports.sweep.measured import choices_of, label, styles, tuned_lora
from search.reports.words import change, count, listed, plural, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "comparison", "Each method's best beside LoRA"


@dataclass(frozen=True)
class Beside:
    """A row of the figure: a choice's mean less that of LoRA, and the interval of that."""

    arm: str
    params: int
    mean: float
    gap: float
    interval: tuple[float, float] | None
    told: str
    is_reference: bool
    is_noise: bool


def beside_panel(record: SweepRecord) -> Panel | Absent:
    """The confirmed choices on test; where none is confirmed, the best of each arm on dev."""
    if record.comparison is not None and record.comparison.rows:
        return _on_test(record, record.comparison.rows)
    return _on_dev(record)


def reference_of(rows: Sequence[Confirmation]) -> Confirmation | None:
    """Tuned LoRA among the confirmed; None where it was not confirmed."""
    return next((row for row in rows if "lora" in (row.arm, row.method)), None)


def _on_test(record: SweepRecord, rows: Sequence[Confirmation]) -> Panel:
    lora = reference_of(rows)
    level = rows[0].mean if lora is None else lora.mean
    found = [
        Beside(
            row.arm,
            row.trainable_params,
            row.mean,
            row.mean - level,
            row.adjusted,
            "the line to beat" if row is lora else row.verdict or "no interval",
            row is lora,
            bool(row.within_noise),
        )
        for row in rows
    ]
    when = {row.number: row.value for row in record.best}
    table: list[Sequence[Cell]] = []
    for row, each in zip(rows, found, strict=True):
        low, high = row.adjusted or (None, None)
        table.append(
            (row.arm, row.number, row.trainable_params, len(row.values), row.mean, row.deviation,
             each.gap if lora is not None else None, low, high, row.p_adjusted, row.verdict,
             when.get(row.number), _mean(row.on_dev))
        )  # fmt: skip
    metric = record.objective.metric
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says_on_test(rows, lora, metric),
        columns=(
            "arm", "trial", "parameters", "seeds", f"{metric} on test", "deviation", "minus LoRA",
            "low", "high", "p (adjusted)", "verdict", f"{metric} on dev when chosen",
            f"{metric} on dev over its seeds",
        ),
        rows=table,
        printed=lambda: _printed(record, found, f"{metric} on test", lora is not None),
        brushed=lambda: _brushed(record, found, f"{metric} on test", lora is not None),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _says_on_test(rows: Sequence[Confirmation], lora: Confirmation | None, metric: str) -> str:
    if lora is None:
        return (
            f"Confirmed on test: {rows[0].arm} has the best mean {metric}, {value(rows[0].mean)}. "
            "LoRA was not confirmed, so differences are shown from the best."
        )
    compared = [row for row in rows if row.verdict is not None]
    told = [
        f"{listed([_with_gap(row, lora) for row in rows if row.verdict == verdict])} "
        f"{'is' if sum(row.verdict == verdict for row in rows) == 1 else 'are'} {verdict}"
        for verdict in ("better", "worse", "within the noise")
        if any(row.verdict == verdict for row in rows)
    ]
    start = (
        f"On test, beside tuned LoRA's {value(lora.mean)} over {plural(len(lora.values), 'seed')}"
    )
    if not compared:
        return f"{start}: no interval can be told of any other choice."
    return (
        f"{start}: {'; '.join(told)} (95 % intervals, adjusted for "
        f"{plural(len(compared), 'comparison')})."
    )


def _with_gap(row: Confirmation, lora: Confirmation) -> str:
    return f"{row.arm} ({change(row.mean - lora.mean)})"


def _on_dev(record: SweepRecord) -> Panel | Absent:
    choices = choices_of(record)
    if not choices:
        return Absent(KEY, TITLE, "no trial has run to its end")
    lora = tuned_lora(choices)
    firsts = {each.row.arm: each for each in reversed(choices)}
    best = sorted(firsts.values(), key=choices.index)
    level = (lora or best[0]).seeds.mean
    found = [
        Beside(
            each.row.arm,
            each.row.trainable_params,
            each.seeds.mean,
            each.seeds.mean - level,
            None,
            "the line to beat" if each is lora else f"on dev, trial {each.row.number}",
            each is lora,
            False,
        )
        for each in best
    ]
    metric = record.objective.metric
    says = (
        "Nothing is confirmed on test, so these are the best of each method on dev, by which they "
        "were chosen: part of any lead is luck. "
    )
    if lora is None:
        says += f"No LoRA was trained to its end; the best is {best[0].row.arm}."
    elif len(best) == 1:
        says += "Nothing but LoRA was trained to its end."
    else:
        others = [each for each in best if each is not lora]
        says += f"From tuned LoRA's {value(lora.seeds.mean)}: " + listed(
            [f"{each.row.arm} {change(each.seeds.mean - level)}" for each in others]
        )
        says += "."
    return Panel(
        key=KEY,
        title=TITLE,
        says=says,
        columns=("arm", "trial", "parameters", "seeds", f"{metric} on dev", "minus LoRA"),
        rows=[
            (each.row.arm, each.row.number, each.row.trainable_params, len(each.seeds.values),
             each.seeds.mean, None if lora is None else each.seeds.mean - level)
            for each in best
        ],
        printed=lambda: _printed(record, found, f"{metric} on dev", lora is not None),
        brushed=lambda: _brushed(record, found, f"{metric} on dev", lora is not None),
    )  # fmt: skip


def _axis(metric: str, has_lora: bool) -> str:
    return f"{metric}, minus tuned LoRA" if has_lora else f"{metric}, minus the best"


def _brushed(
    record: SweepRecord, found: Sequence[Beside], metric: str, has_lora: bool
) -> Mapping[str, Any]:
    look = styles(record)
    data = []
    for each in found:
        style = look[each.arm]
        colour = both(*NOISE) if each.is_noise else style.colour
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": label(each.arm),
            "x": [round(each.gap, 6)],
            "y": [label(each.arm)],
            "marker": {"color": colour, "symbol": style.symbol_plotly, "size": 12},
            "hovertemplate": (
                f"{label(each.arm)}: {label(metric)} {value(each.mean)}<br>"
                f"{count(each.params)} parameters<br>{each.told}<extra></extra>"
            ),
            "showlegend": False,
        }
        if each.interval is not None:
            low, high = each.interval
            trace["error_x"] = {
                "type": "data", "symmetric": False, "array": [round(high - each.gap, 6)],
                "arrayminus": [round(each.gap - low, 6)], "color": colour, "thickness": 2,
                "width": 7,
            }  # fmt: skip
        data.append(trace)
    zero = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 0, "x1": 0,
            "line": {"color": both(*INK), "width": 1.5, "dash": "dash"}}  # fmt: skip
    return {
        "data": data,
        "layout": {
            "height": 120 + 46 * len(found),
            "xaxis": {"title": {"text": label(_axis(metric, has_lora))}, "zeroline": False},
            "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
            "shapes": [zero],
        },
    }


def _printed(record: SweepRecord, found: Sequence[Beside], metric: str, has_lora: bool) -> Figure:
    look = styles(record)
    figure, axes = plot(8.0, 1.3 + 0.42 * len(found), TITLE)
    axes.axvline(0, color=INK[0], linestyle="--", linewidth=1.2)
    for place, each in enumerate(found):
        style = look[each.arm]
        colour = NOISE[0] if each.is_noise else style.colour_light
        if each.interval is not None:
            axes.hlines(place, *each.interval, color=colour, linewidth=2)
        axes.plot(each.gap, place, style.marker_matplotlib, color=colour, markersize=8)
        axes.annotate(
            f"{value(each.mean)}, {each.told}", (1.01, place), fontsize=8, va="center",
            xycoords=("axes fraction", "data"), annotation_clip=False, parse_math=False,
        )  # fmt: skip
    axes.set_yticks(range(len(found)), [each.arm for each in found], fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(_axis(metric, has_lora), parse_math=False)
    axes.grid(axis="x", color="0.92")
    return figure
