"""Trials as they ended, and the best so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.objective import Objective
from search.queries.best import on_dev
from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, NOISE, both
from search.reports.drawing import plot
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import arm_of, better, label, styles
from search.reports.words import hours, plural, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "over-time", "Trials over time"
_STATES = {
    "pruned": ("x-thin-open", "x"),
    "failed": ("cross-thin-open", "+"),
    "stopped": ("line-ns-open", "|"),
    "cancelled": ("line-ew-open", "_"),
    "interrupted": ("line-ew-open", "_"),
    "running": ("hourglass-open", "d"),
}
"""How what is not complete is marked, by Plotly and by matplotlib."""


@dataclass(frozen=True)
class Moment:
    """A trial or a confirmation (`seed`) at its end, seconds after the sweep began."""

    number: int | None
    seed: int | None
    arm: str
    state: str
    at: float
    value: float | None
    best_so_far: float | None
    counts: bool


def moments(record: SweepRecord) -> list[Moment]:
    """In the order in which they ended; what runs still stands where it began.

    The best so far is that of the complete trials of the search, as they ended one after another.
    """
    metric, objective = record.objective.metric, record.objective
    every = [
        (run, run.ended_ms or run.started_ms) for run in (*record.trials, *record.confirmations)
    ]
    if not every:
        return []
    zero = min(run.started_ms for run, _ in every)
    zero = min(zero, record.run.started_ms or zero)
    best: float | None = None
    found = []
    for run, at in sorted(every, key=lambda each: each[1]):
        is_trial = run.kind == "trial"
        measured = run.metrics.get(metric) if is_trial else on_dev(run, metric)
        counts = is_trial and run.status == "complete" and run.warm_from is None
        if counts and measured is not None:
            best = measured if best is None else _better(objective, best, measured)
        found.append(
            Moment(
                run.number,
                None if is_trial else run.seed,
                arm_of(run),
                run.status or "running",
                (at - zero) / 1000,
                measured,
                best,
                counts,
            )
        )
    return found


def _better(objective: Objective, before: float, now: float) -> float:
    return now if objective.is_better(now, before) else before


def over_time_panel(record: SweepRecord) -> Panel | Absent:
    """Every trial and confirmation."""
    found = moments(record)
    if not found:
        return Absent(KEY, TITLE, "no trial has begun yet")
    metric = record.objective.metric
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, found),
        columns=(
            "hours", "trial", "confirms with seed", "arm", "state", f"{metric} on dev",
            "best so far",
        ),
        rows=[
            (round(each.at / 3600, 5), each.number, each.seed, each.arm, each.state, each.value,
             each.best_so_far)
            for each in found
        ],
        printed=lambda: _printed(record, found),
        brushed=lambda: _brushed(record, found),
    )  # fmt: skip


def _says(record: SweepRecord, found: Sequence[Moment]) -> str:
    trials = [each for each in found if each.seed is None]
    over = f"{plural(len(trials), 'trial')} over {hours(found[-1].at)}"
    last = found[-1].best_so_far
    if last is None:
        return f"{over}; none has run to its end yet."
    first = next(each for each in found if each.best_so_far == last)
    after = sum(1 for each in trials if each.at > first.at and each.counts)
    text = (
        f"{over}. The best {record.objective.metric} so far, {value(last)}, was reached by trial "
        f"{first.number} ({first.arm}) after {hours(first.at)}"
    )
    text += f"; {plural(after, 'complete trial')} since did not beat it." if after else "."
    confirmed = len(found) - len(trials)
    if confirmed:
        text += f" {plural(confirmed, 'confirmation')} followed, shown by what they have on dev."
    return text


def _unit(found: Sequence[Moment]) -> tuple[str, float]:
    most = found[-1].at
    for name, seconds, at_least in (("days", 86_400.0, 259_200.0), ("hours", 3600.0, 5400.0)):
        if most >= at_least:
            return name, seconds
    return "minutes", 60.0


def _brushed(record: SweepRecord, found: Sequence[Moment]) -> Mapping[str, Any]:
    look, metric = styles(record), label(record.objective.metric)
    unit, size = _unit(found)
    data: list[dict[str, Any]] = []
    kind = "scatter" if len(found) <= 2_000 else "scattergl"

    def trace(name: str, each: Sequence[Moment], marker: Mapping[str, Any]) -> None:
        shown = [moment for moment in each if moment.value is not None]
        if shown:
            data.append(
                {
                    "type": kind, "mode": "markers", "name": label(name), "marker": marker,
                    "x": [round(moment.at / size, 3) for moment in shown],
                    "y": [round(moment.value or 0.0, 6) for moment in shown],
                    "text": [_named(moment) for moment in shown],
                    "hovertemplate": f"%{{text}}<br>{metric} %{{y:.4f}} after %{{x:.1f}} {unit}"
                    "<extra></extra>",
                }
            )  # fmt: skip

    for arm in look:
        own = [each for each in found if each.arm == arm]
        marker = {"color": look[arm].colour, "symbol": look[arm].symbol_plotly, "size": 9}
        trace(arm, [each for each in own if each.seed is None and each.counts], marker)
    for state, (symbol, _) in _STATES.items():
        marker = {"color": both(*NOISE), "symbol": symbol, "size": 8, "line": {"width": 1.5}}
        trace(state, [each for each in found if each.seed is None and each.state == state], marker)
    marker = {"color": both(*INK), "symbol": "star-open", "size": 10}
    trace("confirmation", [each for each in found if each.seed is not None], marker)
    stepped = [each for each in found if each.best_so_far is not None]
    data.append(
        {
            "type": "scatter", "mode": "lines", "name": "best so far", "hoverinfo": "skip",
            "x": [round(each.at / size, 3) for each in stepped],
            "y": [each.best_so_far for each in stepped],
            "line": {"shape": "hv", "color": both(*INK), "width": 2},
        }
    )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "height": 440,
            "xaxis": {"title": {"text": f"{unit} since the sweep began"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": f"{metric} on dev ({better(record.objective)})"}},
        },
    }


def _named(each: Moment) -> str:
    seed = "" if each.seed is None else f", seed {each.seed}"
    return f"trial {each.number}{seed}, {label(each.arm)}, {each.state}"


def _printed(record: SweepRecord, found: Sequence[Moment]) -> Figure:
    look = styles(record)
    unit, size = _unit(found)
    figure, axes = plot(8.0, 4.4, TITLE)

    def marks(name: str, each: Sequence[Moment], marker: str, colour: str, **more: Any) -> None:
        shown = [moment for moment in each if moment.value is not None]
        if shown:
            axes.plot(
                [moment.at / size for moment in shown], [moment.value or 0.0 for moment in shown],
                marker, label=name, color=colour, linestyle="none", **more,
            )  # fmt: skip

    stepped = [each for each in found if each.best_so_far is not None]
    axes.step(
        [each.at / size for each in stepped], [each.best_so_far or 0.0 for each in stepped],
        where="post", color=INK[0], linewidth=1.6, label="best so far", zorder=0,
    )  # fmt: skip
    for arm, style in look.items():
        own = [each for each in found if each.arm == arm and each.seed is None and each.counts]
        marks(arm, own, style.marker_matplotlib, style.colour_light, markersize=5.5)
    for state, (_, marker) in _STATES.items():
        own = [each for each in found if each.seed is None and each.state == state]
        marks(state, own, marker, NOISE[0], markersize=5)
    confirmed = [each for each in found if each.seed is not None]
    marks("confirmation", confirmed, "*", INK[0], markersize=7, markerfacecolor="none")
    axes.set_xlabel(f"{unit} since the sweep began")
    axes.set_ylabel(f"{record.objective.metric} ({better(record.objective)})", parse_math=False)
    axes.grid(axis="y", color="0.92")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
