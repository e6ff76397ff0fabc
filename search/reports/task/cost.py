"""A task's sweeps as a table, and what each of them cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.queries.sweep_record import SweepRecord
from search.reports.colours import both
from search.reports.drawing import plot, ticks
from search.reports.panel import Absent, Cell, Panel
from search.reports.sweep.hours import gpus_of, groups_of
from search.reports.sweep.measured import label
from search.reports.task.record import TaskRecord, called
from search.reports.words import hours, plural, value
from search.tracking.ui import ui_link
from search.wording import moment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "sweeps", "The sweeps, and what each cost"
_STAGES = {
    "prepare": ("#8b929c", "#8b929c"),
    "profile": ("#6b5aa8", "#b3a5ec"),
    "search": ("#0072b2", "#56b4e9"),
    "confirm": ("#a86f00", "#e69f00"),
}
_HATCHES = dict(zip(_STAGES, ("--", "..", "", "//"), strict=True))
_PATTERNS = dict(zip(_STAGES, ("-", ".", "", "/"), strict=True))


def gpu_hours(sweep: SweepRecord) -> float | None:
    """GPU-hours that its workers held in its last launch; None where they had no GPU, or its file
    is not kept."""
    gpus = gpus_of(sweep) * groups_of(sweep)
    return gpus * sum(sweep.seconds.values()) / 3600 if gpus else None


def sweeps_panel(record: TaskRecord) -> Panel | Absent:
    """Hours of each sweep by stage, and a line for each with all that is looked up of it."""
    timed = [sweep for sweep in record.sweeps if sweep.seconds]
    whole = sum(sum(sweep.seconds.values()) for sweep in timed)
    gpu = [hours_ for sweep in record.sweeps if (hours_ := gpu_hours(sweep)) is not None]
    says = f"{plural(len(record.sweeps), 'sweep')}"
    says += f" took {hours(whole)} in their last launches" if timed else ""
    if timed:
        longest = max(timed, key=lambda sweep: sum(sweep.seconds.values()))
        says += f"; the longest, {longest.run.sweep}, {hours(sum(longest.seconds.values()))}"
    says += f". Their workers held {value(sum(gpu), 3)} GPU-hours." if gpu else "."
    if len(timed) < len(record.sweeps):
        says += f" {plural(len(record.sweeps) - len(timed), 'sweep')} did not say how long."
    drawn = _Hours(record.sweeps)
    return Panel(
        KEY,
        TITLE,
        says=says,
        columns=["sweep", "began", "base", "state", "trials", "complete", "best arm", "metric",
                 "on dev", "on test", "seeds", *(f"{stage} s" for stage in _STAGES), "GPU-hours",
                 "run", "in MLflow"],
        rows=[_line(record, sweep) for sweep in reversed(record.sweeps)],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )  # fmt: skip


def _line(record: TaskRecord, sweep: SweepRecord) -> list[Cell]:
    run, step = sweep.run, record.step_of(sweep)
    gpu = gpu_hours(sweep)
    return [
        run.sweep,
        moment(run.started_ms),
        run.base_uri if step is None else called(step),
        run.status or "running",
        len(sweep.trials),
        sum(trial.status == "complete" for trial in sweep.trials),
        None if step is None else step.method,
        sweep.objective.metric,
        None if step is None else step.value,
        None if step is None else step.test,
        None if step is None else step.seeds,
        *(_rounded(sweep.seconds.get(stage), 1) for stage in _STAGES),
        _rounded(gpu, 3),
        run.run_id,
        ui_link(record.tracking_uri, run.experiment_id, run.run_id),
    ]


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)


@dataclass(frozen=True)
class _Hours:
    sweeps: Sequence[SweepRecord]

    def _unit(self) -> tuple[str, float]:
        most = max((sum(sweep.seconds.values()) for sweep in self.sweeps), default=0.0)
        return ("hours", 3600.0) if most >= 3600 else ("minutes", 60.0)

    def _bars(self, stage: str) -> list[float]:
        size = self._unit()[1]
        return [round(sweep.seconds.get(stage, 0.0) / size, 4) for sweep in self.sweeps]

    def printed(self) -> Figure:
        figure, axes = plot(8.0, 1.8 + 0.34 * len(self.sweeps), TITLE)
        before = [0.0] * len(self.sweeps)
        for stage, (colour, _) in _STAGES.items():
            bars = self._bars(stage)
            axes.barh(
                range(len(bars)), bars, 0.7, left=before, color=colour, edgecolor="white",
                linewidth=0.5, hatch=_HATCHES[stage], label=stage,
            )  # fmt: skip
            before = [a + b for a, b in zip(before, bars, strict=True)]
        ticks(axes, "y", range(len(self.sweeps)), [sweep.run.sweep for sweep in self.sweeps])
        axes.set_ylim(len(self.sweeps) - 0.5, -0.5)
        axes.set_xlabel(self._unit()[0])
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        unit = self._unit()[0]
        # Two sweeps of one name are two bars.
        places = list(range(len(self.sweeps)))
        data = [
            {"type": "bar", "orientation": "h", "name": stage, "y": places, "x": self._bars(stage),
             "marker": {"color": both(*colours), "pattern": {"shape": _PATTERNS[stage]}},
             "hovertemplate": f"{stage}: %{{x:.3~g}} {unit}<extra></extra>"}
            for stage, colours in _STAGES.items()
        ]  # fmt: skip
        layout = {
            "height": 200 + 30 * len(self.sweeps),
            "barmode": "stack",
            "yaxis": {
                "tickvals": places, "autorange": "reversed", "automargin": True,
                "ticktext": [label(sweep.run.sweep) for sweep in self.sweeps],
            },
            "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
            "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        }  # fmt: skip
        return {"data": data, "layout": layout}
