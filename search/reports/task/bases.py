"""The bases of a task side by side: the best of each, and what it costs in parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import LogLocator

from search.queries.comparison import Confirmation
from search.queries.differences import mean_interval
from search.queries.history import Step
from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, ArmStyle, both, style_of
from search.reports.drawing import plain, plot, room, ticks
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import Choice, choices_of, label
from search.reports.task.record import TaskRecord, called, gain
from search.reports.words import count, plural, short_count, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "bases", "Bases side by side"
FRONT_KEY, FRONT_TITLE = "pareto-over-bases", "Metric against parameters, over all bases"


@dataclass(frozen=True)
class OnBase:
    """The best of one base: its choice on dev, and on test where it is confirmed."""

    base: str
    step: Step
    choice: Choice
    confirmed: Confirmation | None


def best_of_bases(record: TaskRecord) -> list[OnBase]:
    """The best of each base over the newest data, best first; each by what it holds on dev."""
    sweeps = {sweep.run.run_id: sweep for sweep in record.sweeps}
    best: dict[str, Step] = {}
    for step in record.comparable:
        name = called(step)
        if name not in best or gain(step) > gain(best[name]):
            best[name] = step
    found = []
    for base, step in sorted(best.items(), key=lambda each: -gain(each[1])):
        sweep = sweeps.get(step.sweep_run)
        choice = None if sweep is None else _choice_of(sweep, step)
        if sweep is not None and choice is not None:
            found.append(OnBase(base, step, choice, _confirmed(sweep, choice)))
    return found


def _choice_of(sweep: SweepRecord, step: Step) -> Choice | None:
    choices = choices_of(sweep)
    return next((c for c in choices if c.row.run_id == step.run_id), next(iter(choices), None))


def _confirmed(sweep: SweepRecord, choice: Choice) -> Confirmation | None:
    rows = () if sweep.comparison is None else sweep.comparison.rows
    return next((row for row in rows if row.number == choice.row.number), None)


def bases_panel(record: TaskRecord) -> Panel | Absent:
    """The best of each base on dev and on test, with its parameters."""
    found = best_of_bases(record)
    if not found:
        return Absent(KEY, TITLE, "no sweep of the task has a complete trial")
    metric = found[0].step.metric
    drawn = _Bases(found)
    others = len(record.bases) - len(found)
    told = "; ".join(
        f"{each.base} {value(each.choice.seeds.mean)} on dev by {each.choice.row.arm} with "
        f"{count(each.choice.row.trainable_params)} parameters"
        + ("" if each.step.test is None else f", {value(each.step.test)} on test")
        for each in found
    )
    if others:
        are = "is" if others == 1 else "are"
        told += f"; {plural(others, 'base')} with sweeps over other data alone {are} left out"
    return Panel(
        KEY,
        TITLE,
        says=f"The best of each base: {told}.",
        columns=["base", "sweep", "arm", "trial", "parameters", f"{metric} on dev", "dev seeds",
                 "dev low", "dev high", "on test", "test seeds", "test low", "test high"],
        rows=[
            [each.base, each.step.sweep, each.choice.row.arm, each.choice.row.number,
             each.choice.row.trainable_params, each.choice.seeds.mean,
             len(each.choice.seeds.values), *(each.choice.interval or (None, None)),
             each.step.test, each.step.seeds, *(_test_interval(each) or (None, None))]
            for each in found
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )  # fmt: skip


def _test_interval(each: OnBase) -> tuple[float, float] | None:
    """The 95% interval of the test mean over seeds, by Student's t."""
    return None if each.confirmed is None else mean_interval(each.confirmed.values)


@dataclass(frozen=True)
class _Bases:
    found: Sequence[OnBase]

    def _names(self) -> list[str]:
        return [
            f"{each.base} ({each.choice.row.arm}, {short_count(each.choice.row.trainable_params)})"
            for each in self.found
        ]

    def _series(self) -> list[tuple[str, list[float | None], list[tuple[float, float] | None]]]:
        return [
            (
                "on dev",
                [each.choice.seeds.mean for each in self.found],
                [each.choice.interval for each in self.found],
            ),
            (
                "on test",
                [each.step.test for each in self.found],
                [_test_interval(each) for each in self.found],
            ),
        ]

    def printed(self) -> Figure:
        figure, axes = plot(8.0, 1.8 + 0.6 * len(self.found), TITLE)
        for (name, values, spans), shift, colour, marker in zip(
            self._series(), (-0.14, 0.14), ("#0072b2", "#d55e00"), ("o", "s"), strict=True
        ):
            at = [(place + shift, v) for place, v in enumerate(values) if v is not None]
            if at:
                axes.plot([v for _, v in at], [y for y, _ in at], marker, color=colour, label=name)
            for place, span in enumerate(spans):
                if span is not None:
                    axes.hlines(place + shift, *span, color=colour, linewidth=1.4)
        ticks(axes, "y", range(len(self.found)), self._names())
        axes.set_ylim(len(self.found) - 0.5, -0.5)
        axes.set_xlabel(f"{self.found[0].step.metric}, 95% interval over seeds", parse_math=False)
        axes.grid(axis="x", color="0.92")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        names = [label(name) for name in self._names()]
        looks = ((both("#0072b2", "#56b4e9"), "circle"), (both("#d55e00", "#f28e4b"), "square"))
        data: list[dict[str, Any]] = []
        for (name, values, spans), (colour, symbol) in zip(self._series(), looks, strict=True):
            known = [
                (label_, v, span)
                for label_, v, span in zip(names, values, spans, strict=True)
                if v is not None
            ]
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": name,
                    "x": [round(v, 6) for _, v, _ in known], "y": [n for n, _, _ in known],
                    "marker": {"color": colour, "symbol": symbol, "size": 10},
                    "error_x": {
                        "type": "data", "symmetric": False, "color": colour, "thickness": 1.4,
                        "array": [round(s[1] - v, 6) if s else 0 for _, v, s in known],
                        "arrayminus": [round(v - s[0], 6) if s else 0 for _, v, s in known],
                    },
                    "hovertemplate": f"%{{y}}<br>{name} %{{x:.4f}}<extra></extra>",
                }
            )  # fmt: skip
        layout = {
            "height": 200 + 46 * len(names),
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "xaxis": {
                "title": {"text": label(self.found[0].step.metric)},
                "automargin": True,
                **room(v for each in data for v in list(each["x"])),
            },
            "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
        }
        return {"data": data, "layout": layout}


# -- over all bases --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A choice that was trained to its end, on a base."""

    base: str
    sweep: str
    choice: Choice


def front_panel(record: TaskRecord) -> Panel | Absent:
    """The best choices of every arm of every sweep over the newest data, and their front."""
    of_runs = {step.sweep_run: called(step) for step in record.comparable}
    tried = []
    for sweep in record.sweeps:
        if sweep.run.run_id in of_runs:
            arms: set[str] = set()
            for choice in choices_of(sweep):
                if choice.row.arm not in arms and not choice.seeds.collapsed:
                    arms.add(choice.row.arm)
                    tried.append(Tried(of_runs[sweep.run.run_id], sweep.run.sweep, choice))
    if not tried:
        return Absent(FRONT_KEY, FRONT_TITLE, "no sweep of the task has a complete trial")
    tried.sort(key=lambda each: each.choice.row.trainable_params)
    drawn = _Front(record, tried, front_of_tried(tried, record.comparable[0].mode == "max"))
    on_front = {id(each) for each in drawn.front}
    least, most = drawn.front[0], drawn.front[-1]
    bases = list(dict.fromkeys(each.base for each in drawn.front))
    return Panel(
        FRONT_KEY,
        FRONT_TITLE,
        says=(
            f"The best of each arm in each sweep, {plural(len(tried), 'choice')}: the front goes "
            f"from {_told(least)} to {_told(most)}; on it {'is' if len(bases) == 1 else 'are'} "
            f"{', '.join(bases)}."
        ),
        columns=["base", "sweep", "arm", "trial", "parameters", record.comparable[0].metric,
                 "holds", "on the front"],
        rows=[
            [each.base, each.sweep, each.choice.row.arm, each.choice.row.number,
             each.choice.row.trainable_params, each.choice.seeds.mean, each.choice.holds,
             id(each) in on_front]
            for each in tried
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )  # fmt: skip


def front_of_tried(by_params: Sequence[Tried], more_is_better: bool) -> list[Tried]:
    """Those that none of fewer or equal parameters equals in what it holds, fewest parameters
    first."""
    front: list[Tried] = []
    best = -inf
    for each in sorted(
        by_params,
        key=lambda e: (
            e.choice.row.trainable_params,
            -e.choice.holds if more_is_better else e.choice.holds,
        ),
    ):
        held = each.choice.holds if more_is_better else -each.choice.holds
        if held > best:
            front.append(each)
            best = held
    return front


def _told(each: Tried) -> str:
    row = each.choice.row
    return (
        f"{row.arm} on {each.base} with {count(row.trainable_params)} parameters "
        f"({value(each.choice.seeds.mean)})"
    )


@dataclass(frozen=True)
class _Front:
    record: TaskRecord
    tried: Sequence[Tried]
    front: Sequence[Tried]

    @property
    def _look(self) -> dict[str, ArmStyle]:
        """Of the bases that are shown, as they look in all figures."""
        shown = {each.base for each in self.tried}
        every = style_of(self.record.bases)
        return {base: style for base, style in every.items() if base in shown}

    def printed(self) -> Figure:
        figure, axes = plot(8.0, 4.6, FRONT_TITLE)
        for base, style in self._look.items():
            of = [each.choice for each in self.tried if each.base == base]
            axes.plot(
                [c.row.trainable_params for c in of], [c.seeds.mean for c in of],
                style.marker_matplotlib, color=style.colour_light, label=plain(base), markersize=7,
                alpha=0.85,
            )  # fmt: skip
        axes.step(
            [each.choice.row.trainable_params for each in self.front],
            [each.choice.seeds.mean for each in self.front],
            where="post", color=INK[0], linewidth=1.2, label="front", zorder=0,
        )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda x, _: short_count(x))
        axes.minorticks_off()
        axes.set_xlabel("trained parameters")
        axes.set_ylabel(f"{self.record.comparable[0].metric} on dev", parse_math=False)
        axes.grid(axis="y", color="0.92")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        data: list[dict[str, Any]] = [
            {"type": "scatter", "mode": "lines", "name": "front", "hoverinfo": "skip",
             "x": [each.choice.row.trainable_params for each in self.front],
             "y": [round(each.choice.seeds.mean, 6) for each in self.front],
             "line": {"shape": "hv", "color": both(*INK), "width": 1.5}}
        ]  # fmt: skip
        for base, style in self._look.items():
            of = [each for each in self.tried if each.base == base]
            data.append(
                {"type": "scatter", "mode": "markers", "name": label(base),
                 "x": [each.choice.row.trainable_params for each in of],
                 "y": [round(each.choice.seeds.mean, 6) for each in of],
                 "text": [label(f"{each.choice.row.arm}, sweep {each.sweep}") for each in of],
                 "hovertemplate": f"{label(base)}, %{{text}}<br>%{{x:,}} parameters<br>%{{y:.4f}}"
                                  "<extra></extra>",
                 "marker": {"color": style.colour, "symbol": style.symbol_plotly, "size": 10}}
            )  # fmt: skip
        layout = {
            "height": 440,
            "xaxis": {
                "type": "log",
                "dtick": "D2",
                "tickformat": "~s",
                "title": {"text": "trained parameters"},
            },
            "yaxis": {
                "title": {"text": label(f"{self.record.comparable[0].metric} on dev")},
                "automargin": True,
                **room(each.choice.seeds.mean for each in self.tried),
            },
            "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        }
        return {"data": data, "layout": layout}
