"""How the best of a task moved over time and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from search.queries.history import Step
from search.reports.colours import ArmStyle, style_of
from search.reports.drawing import plain, plot, room
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import label
from search.reports.task.record import TaskRecord, called
from search.reports.words import plural, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "best-over-time", "The best over time and sweeps"
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
"""Of the data, as Plotly and matplotlib call them."""
_DAY_S = 86_400


def history_panels(record: TaskRecord) -> list[Panel | Absent]:
    """A panel for every metric that sweeps searched by, the newest's first."""
    metrics = list(dict.fromkeys(step.metric for step in reversed(record.steps)))
    if not metrics:
        return [Absent(KEY, TITLE, "no sweep of the task has a complete trial")]
    return [
        _panel(
            [step for step in record.steps if step.metric == metric],
            record.bases,
            KEY if metric == metrics[0] else f"{KEY}-{place}",
            TITLE if len(metrics) == 1 else f"{TITLE}, by {metric}",
        )
        for place, metric in enumerate(metrics, 1)
    ]


def _panel(steps: Sequence[Step], bases: Sequence[str], key: str, title: str) -> Panel:
    drawn = _Drawn(title, steps, bases)
    return Panel(
        key,
        title,
        says=_says(steps),
        columns=["started", "sweep", "base", "data", "method", f"{steps[0].metric} on dev",
                 "holds", "on test", "seeds", "best so far", "champion"],
        rows=[
            [_moment(step).strftime("%Y-%m-%d %H:%M"), step.sweep, called(step),
             (step.data or "")[:12], step.method, step.value, step.holds, step.test, step.seeds,
             step.is_best, _crown(step)]
            for step in steps
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )  # fmt: skip


def _says(steps: Sequence[Step]) -> str:
    lines = _lines(steps)
    moved = []
    for (base, _), of in lines.items():
        first, bests = of[0], [step for step in of if step.is_best]
        if len(of) > 1 and len(bests) > 1:
            moved.append(
                f"on {base} from {value(first.value)} ({first.sweep}) to {value(bests[-1].value)} "
                f"({bests[-1].sweep})"
            )
        elif len(of) > 1:
            moved.append(f"on {base} it stays at {value(first.value)} ({first.sweep})")
    told = f"{plural(len(steps), 'sweep')} on dev, by {steps[0].metric}"
    told += f": the best moved {'; '.join(moved)}." if moved else "."
    if len({step.data for step in steps}) > 1:
        told += " Values over other data (rows, lengths or templates) are joined by no line."
    champions = [step for step in steps if step.reigns]
    if champions:
        told += " Champion is the best of " + " and ".join(
            f"{step.sweep} (version {step.champion} on {called(step)})" for step in champions
        )
        told += "."
    return told


def _lines(steps: Sequence[Step]) -> dict[tuple[str, str | None], list[Step]]:
    """What a line joins: the steps of one base over one data, the oldest first."""
    found: dict[tuple[str, str | None], list[Step]] = {}
    for step in steps:
        found.setdefault((called(step), step.data), []).append(step)
    return found


def best_so_far(steps: Sequence[Step]) -> list[float]:
    """The dev value of the best up to each step, by what it holds as `is_best` has it."""
    found: list[float] = []
    for step in steps:
        found.append(step.value if step.is_best or not found else found[-1])
    return found


def _moment(step: Step) -> datetime:
    return datetime.fromtimestamp((step.started_ms or 0) / 1000, UTC).astimezone()


def _days(step: Step) -> float:
    return (step.started_ms or 0) / 1000 / _DAY_S


def _crown(step: Step) -> str | None:
    if step.champion is None:
        return None
    return f"{'champion' if step.reigns else 'was champion'}, version {step.champion}"


@dataclass(frozen=True)
class _Drawn:
    title: str
    steps: Sequence[Step]
    bases: Sequence[str]
    """Of all the task's steps, so that each has one look in all figures."""

    @property
    def _look(self) -> dict[str, ArmStyle]:
        return style_of(self.bases)

    @property
    def _data(self) -> list[str | None]:
        """The newest first."""
        return list(dict.fromkeys(step.data for step in reversed(self.steps)))

    def _alpha(self, data: str | None) -> float:
        """What is over other data than the newest is fainter."""
        return 1.0 if data == self._data[0] else 0.45

    def _name(self, base: str, data: str | None) -> str:
        return f"{base}, data {(data or 'unnamed')[:8]}" if len(self._data) > 1 else base

    @property
    def _axis(self) -> str:
        step = self.steps[0]
        way = "higher" if step.mode == "max" else "lower"
        return f"{step.metric} on dev ({way} is better)"

    def _days_around(self) -> dict[str, Any]:
        """A range for the axis of time where all sweeps are of one moment, which has no scale."""
        first, last = (_moment(step) for step in (self.steps[0], self.steps[-1]))
        if last - first > timedelta(minutes=1):
            return {}
        ends = first - timedelta(days=1), last + timedelta(days=1)
        return {"range": [end.strftime("%Y-%m-%d %H:%M") for end in ends]}

    def printed(self) -> Figure:
        figure, axes = plot(9.0, 4.6, self.title)
        for (base, data), of in _lines(self.steps).items():
            style = self._look[base]
            dash = _DASHES[self._data.index(data) % len(_DASHES)][1]
            at = [_days(step) for step in of]
            marker, colour = style.marker_matplotlib, style.colour_light
            axes.step(at, best_so_far(of), dash, where="post", color=colour, linewidth=1.2)
            axes.plot(
                at, [step.value for step in of], marker, color=colour, markersize=7,
                alpha=self._alpha(data),
                label=plain(f"{self._name(base, data)}: best of a sweep"),
            )  # fmt: skip
            tested = [(x, step.test) for x, step in zip(at, of, strict=True) if step.test]
            if tested:
                axes.plot(
                    *zip(*tested, strict=True), marker, markerfacecolor="none", color=colour,
                    markersize=9, label=plain(f"{self._name(base, data)}: on test"),
                )  # fmt: skip
            for x, step in zip(at, of, strict=True):
                if step.champion is not None:
                    axes.annotate(
                        f"v{step.champion}", (x, step.value), (0, 8),
                        textcoords="offset points", ha="center", fontsize=8,
                        fontweight="bold" if step.reigns else "normal",
                    )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(7))
        span = _days(self.steps[-1]) - _days(self.steps[0])
        shown = "%Y-%m-%d" if span > 7 else "%m-%d %H:%M"
        axes.xaxis.set_major_formatter(
            lambda days, _: datetime.fromtimestamp(days * _DAY_S).strftime(shown)
        )
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(x=0.06, y=0.12)
        axes.set_ylabel(self._axis, parse_math=False)
        axes.grid(axis="y", color="0.92")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        data: list[dict[str, Any]] = []
        for (base, of_data), of in _lines(self.steps).items():
            style, name = self._look[base], label(self._name(base, of_data))
            dash = _DASHES[self._data.index(of_data) % len(_DASHES)][0]
            at = [_moment(step).strftime("%Y-%m-%d %H:%M:%S") for step in of]
            shared = {"type": "scatter", "legendgroup": name, "x": at}
            line = {"shape": "hv", "color": style.colour, "dash": dash, "width": 1.5}
            data.append(
                {**shared, "mode": "lines", "y": best_so_far(of), "line": line,
                 "showlegend": False, "hoverinfo": "skip"}
            )  # fmt: skip
            data.append(
                {**shared, "mode": "markers", "y": [round(s.value, 6) for s in of],
                 "name": f"{name}: best of a sweep", "text": [label(_told(s)) for s in of],
                 "hovertemplate": "%{text}<br>on dev %{y:.4f}<extra></extra>",
                 "marker": {"color": style.colour, "symbol": style.symbol_plotly, "size": 10,
                            "opacity": self._alpha(of_data)}}
            )  # fmt: skip
            tested = [(x, s) for x, s in zip(at, of, strict=True) if s.test is not None]
            if tested:
                data.append(
                    {**shared, "mode": "markers", "name": f"{name}: on test",
                     "x": [x for x, _ in tested], "y": [round(s.test or 0, 6) for _, s in tested],
                     "text": [f"{label(s.sweep)}, {plural(s.seeds, 'seed')}" for _, s in tested],
                     "hovertemplate": "%{text}<br>on test %{y:.4f}<extra></extra>",
                     "marker": {"color": style.colour, "symbol": f"{style.symbol_plotly}-open",
                                "size": 12, "line": {"width": 2}}}
                )  # fmt: skip
        crowned = [step for step in self.steps if step.champion is not None]
        layout = {
            "height": 440,
            "yaxis": {"title": {"text": label(self._axis)}, "automargin": True,
                      **room(each for s in self.steps for each in (s.value, s.test))},
            "xaxis": {"type": "date", "automargin": True, **self._days_around()},
            "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
            "annotations": [
                {"x": _moment(step).strftime("%Y-%m-%d %H:%M:%S"), "y": step.value,
                 "text": ("champion v" if step.reigns else "v") + str(step.champion),
                 "showarrow": False, "yshift": 16}
                for step in crowned
            ],
        }  # fmt: skip
        return {"data": data, "layout": layout}


def _told(step: Step) -> str:
    best = ", best so far" if step.is_best else ""
    return f"{step.sweep}, {step.method} on {called(step)}{best}"
