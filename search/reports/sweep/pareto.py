"""The metric against trained parameters: every choice, and the front that no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, NOISE, both
from search.reports.drawing import plot
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import (
    Choice,
    better,
    choices_of,
    front_of,
    label,
    styles,
    tuned_lora,
)
from search.reports.words import change, count, plural, round_ticks, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "pareto-front", "Metric against parameters"
MOST_AS_SVG = 2_000
COLUMNS = ("arm", "trial", "parameters", "metric", "seeds", "low", "high", "holds", "on the front")


def pareto_panel(record: SweepRecord) -> Panel | Absent:
    """Every choice that was trained to its end, on dev."""
    choices = choices_of(record)
    if not choices:
        return Absent(KEY, TITLE, "no trial has run to its end")
    front = front_of(choices)
    on_front = {id(each) for each in front}
    order = sorted(choices, key=lambda each: (each.row.trainable_params, each.row.number))
    rows = []
    for each in order:
        low, high = each.interval or (None, None)
        row = each.row
        rows.append(
            (row.arm, row.number, row.trainable_params, each.seeds.mean, len(each.seeds.values),
             low, high, each.holds, id(each) in on_front)
        )  # fmt: skip
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, choices, front),
        columns=tuple(record.objective.metric if name == "metric" else name for name in COLUMNS),
        rows=rows,
        printed=lambda: _printed(record, choices, front),
        brushed=lambda: _brushed(record, choices, front),
    )


def _says(record: SweepRecord, choices: Sequence[Choice], front: Sequence[Choice]) -> str:
    metric, objective = record.objective.metric, record.objective
    low, high = _shown_range(choices)
    reach = [end for each in choices for end in each.interval or (each.seeds.mean,)]
    cut = any(not low <= end <= high for end in reach)
    beyond = " What has collapsed and the ends of wide intervals lie outside the picture." * cut
    least, most = front[0], front[-1]
    told = (
        f"{plural(len(choices), 'choice')} on dev, {plural(len(front), 'of them', 'of them')} on "
        f"the front"
    )
    if any(len(each.seeds.values) > 1 for each in choices):
        told += " (the line: what each holds, its mean less one standard error)"
    if len(front) == 1:
        told += (
            f": {most.row.arm} (trial {most.row.number}) has the best {metric}, "
            f"{value(most.seeds.mean)}, with the fewest parameters, "
            f"{count(most.row.trainable_params)}."
        )
    else:
        told += (
            f", from {least.row.arm} with {count(least.row.trainable_params)} parameters "
            f"({metric} {value(least.seeds.mean)}) to {most.row.arm} with "
            f"{count(most.row.trainable_params)} ({value(most.seeds.mean)})."
        )
    lora = tuned_lora(choices)
    if lora is None:
        return f"{told} No LoRA was trained to its end, so there is no line to beat.{beyond}"
    gap = objective.gain(most.seeds.mean) - objective.gain(lora.seeds.mean)
    line = f" The line to beat, tuned LoRA, is at {value(lora.seeds.mean)}"
    if most is lora:
        return f"{told}{line}: it is the best itself.{beyond}"
    return f"{told}{line}; the best of the front is {change(gap)} from it.{beyond}"


def _shown_range(choices: Sequence[Choice]) -> tuple[float, float]:
    """Around the means of what has not collapsed, with their intervals as far as there is room."""
    means = [each.seeds.mean for each in choices if not each.seeds.collapsed]
    means = means or [each.seeds.mean for each in choices]
    ends = [end for each in choices if not each.seeds.collapsed for end in each.interval or ()]
    low, high = min(means), max(means)
    room = max(high - low, 0.01 * abs(high), 1e-6)
    return (
        max(min([low, *ends]), low - room) - 0.06 * room,
        min(max([high, *ends]), high + room) + 0.06 * room,
    )


def _points(choices: Sequence[Choice]) -> dict[str, list[Choice]]:
    by_arm: dict[str, list[Choice]] = {}
    for each in choices:
        by_arm.setdefault(each.row.arm, []).append(each)
    return by_arm


def _brushed(
    record: SweepRecord, choices: Sequence[Choice], front: Sequence[Choice]
) -> Mapping[str, Any]:
    metric, look = record.objective.metric, styles(record)
    by_arm = _points(choices)
    kind = "scatter" if len(choices) <= MOST_AS_SVG else "scattergl"
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "x": [each.row.trainable_params for each in front],
            "y": [round(each.holds, 6) for each in front],
            "line": {"color": both(*INK), "width": 1.5, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for arm in (name for name in look if name in by_arm):
        each = by_arm[arm]
        spread = [(c.interval or (c.seeds.mean,) * 2) for c in each]
        trace: dict[str, Any] = {
            "type": kind,
            "mode": "markers",
            "name": label(arm),
            "x": [c.row.trainable_params for c in each],
            "y": [round(c.seeds.mean, 6) for c in each],
            "text": [f"trial {c.row.number}, {plural(len(c.seeds.values), 'seed')}" for c in each],
            "hovertemplate": (
                f"{label(arm)}, %{{text}}<br>%{{x:,}} parameters<br>{label(metric)} %{{y:.4f}}"
                "<extra></extra>"
            ),
            "marker": {
                "color": look[arm].colour,
                "symbol": look[arm].symbol_plotly,
                "size": 10 if len(choices) <= 300 else 6,
                "opacity": 0.9 if len(choices) <= 300 else 0.5,
            },
        }
        if any(c.interval for c in each):
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [round(high - c.seeds.mean, 6) for c, (_, high) in _with(each, spread)],
                "arrayminus": [round(c.seeds.mean - low, 6) for c, (low, _) in _with(each, spread)],
                "thickness": 1.2,
                "width": 4,
                "color": look[arm].colour,
            }
        data.append(trace)
    shapes, annotations = [], []
    if (lora := tuned_lora(choices)) is not None:
        y = lora.seeds.mean
        shapes.append(
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y,
             "line": {"color": both(*NOISE), "width": 1.5, "dash": "dash"}}
        )  # fmt: skip
        annotations.append(
            {"xref": "paper", "x": 0.005, "y": y, "text": f"tuned LoRA {value(y)}",
             "showarrow": False, "xanchor": "left", "yanchor": "bottom",
             "font": {"color": both(*NOISE)}}
        )  # fmt: skip
    sizes = [max(each.row.trainable_params, 1) for each in choices]
    ticks = round_ticks(min(sizes), max(sizes))
    return {
        "data": data,
        "layout": {
            "height": 460,
            "xaxis": {
                "type": "log",
                "title": {"text": "trained parameters"},
                "tickvals": [at for at, _ in ticks],
                "ticktext": [text for _, text in ticks],
            },
            "yaxis": {
                "title": {"text": f"{label(metric)} on dev ({better(record.objective)})"},
                "range": list(_shown_range(choices)),
            },
            "shapes": shapes,
            "annotations": annotations,
        },
    }


def _with(
    choices: Sequence[Choice], spread: Sequence[tuple[float, ...]]
) -> list[tuple[Choice, tuple[float, float]]]:
    return [(c, (s[0], s[1])) for c, s in zip(choices, spread, strict=True)]


def _printed(record: SweepRecord, choices: Sequence[Choice], front: Sequence[Choice]) -> Figure:
    metric, look = record.objective.metric, styles(record)
    figure, axes = plot(8.0, 4.6, f"{TITLE} (dev)")
    for arm, each in _points(choices).items():
        style = look[arm]
        small = len(choices) > 300
        axes.plot(
            [c.row.trainable_params for c in each], [c.seeds.mean for c in each],
            style.marker_matplotlib, color=style.colour_light, label=arm, linestyle="none",
            markersize=3 if small else 6.5, alpha=0.5 if small else 0.95, markeredgewidth=0,
        )  # fmt: skip
        for c in each:
            if c.interval is not None:
                axes.vlines(
                    c.row.trainable_params, *c.interval, color=style.colour_light, linewidth=1
                )
    axes.step(
        [c.row.trainable_params for c in front], [c.holds for c in front],
        where="post", color=INK[0], linewidth=1.2, label="front", zorder=0,
    )  # fmt: skip
    if (lora := tuned_lora(choices)) is not None:
        axes.axhline(lora.seeds.mean, color=NOISE[0], linestyle="--", linewidth=1.2, zorder=0,
                     label="tuned LoRA")  # fmt: skip
    axes.set_xscale("log")
    sizes = [max(each.row.trainable_params, 1) for each in choices]
    marks = round_ticks(min(sizes), max(sizes))
    axes.set_xticks([at for at, _ in marks], [text for _, text in marks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(*_shown_range(choices))
    axes.set_xlabel("trained parameters")
    axes.set_ylabel(f"{metric} ({better(record.objective)})", parse_math=False)
    axes.grid(axis="y", color="0.92")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
