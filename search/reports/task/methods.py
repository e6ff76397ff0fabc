"""The methods over a task's sweeps: which won how often, and by how much they differ from LoRA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, both, style_of
from search.reports.drawing import plain, plot, ticks
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import choices_of, label, tuned_lora
from search.reports.task.record import TaskRecord
from search.reports.words import change, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 8
"""Sweeps that are counted one by one on an axis."""
WINS_KEY, WINS_TITLE = "wins-by-arm", "Which arm won how often"
GAP_KEY, GAP_TITLE = "difference-from-lora", "Difference from tuned LoRA, sweep by sweep"


@dataclass(frozen=True)
class Gap:
    """How much better an arm's best was than tuned LoRA in one sweep, more being better whatever
    the metric. `low` and `high` are the interval on test over all comparisons of the sweep, None on
    dev; `split` is where it was measured."""

    sweep: str
    place: int
    arm: str
    split: str
    gap: float
    low: float | None = None
    high: float | None = None
    verdict: str | None = None


def wins_panel(record: TaskRecord) -> Panel | Absent:
    """Of how many sweeps each arm was best on dev, and of how many better than LoRA on test."""
    on_dev: Counter[str] = Counter()
    took_part: Counter[str] = Counter()
    better: Counter[str] = Counter()
    for sweep in record.sweeps:
        choices = choices_of(sweep)
        took_part.update({choice.row.arm for choice in choices})
        if choices:
            on_dev[choices[0].row.arm] += 1
        rows = () if sweep.comparison is None else sweep.comparison.rows
        better.update({row.arm for row in rows if row.verdict == "better"})
    if not took_part:
        return Absent(WINS_KEY, WINS_TITLE, "no sweep of the task has a complete trial")
    arms = sorted(took_part, key=lambda arm: (-on_dev[arm], -better[arm], arm))
    drawn = _Wins(arms, on_dev, better)
    told = ", ".join(
        f"{arm} in {on_dev[arm]:,} of {plural(took_part[arm], 'sweep')} with it"
        for arm in arms
        if on_dev[arm]
    )
    beat = ", ".join(f"{arm} in {better[arm]}" for arm in arms if better[arm])
    confirmed = sum(sweep.comparison is not None for sweep in record.sweeps)
    says = f"Best on dev: {told}."
    if confirmed:
        says += (
            f" On test, of {plural(confirmed, 'sweep')} with confirmations, better than LoRA "
            f"beyond the noise: {beat or 'none'}."
        )
    return Panel(
        WINS_KEY,
        WINS_TITLE,
        says=says,
        columns=["arm", "sweeps", "best on dev", "better than LoRA on test"],
        rows=[[arm, took_part[arm], on_dev[arm], better[arm]] for arm in arms],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


@dataclass(frozen=True)
class _Wins:
    arms: Sequence[str]
    on_dev: Mapping[str, int]
    better: Mapping[str, int]

    def printed(self) -> Figure:
        figure, axes = plot(8.0, 1.6 + 0.5 * len(self.arms), WINS_TITLE)
        look = style_of(self.arms)
        for place, arm in enumerate(self.arms):
            colour = look[arm].colour_light
            axes.barh(place - 0.2, self.on_dev[arm], 0.38, color=colour)
            axes.barh(
                place + 0.2, self.better[arm], 0.38, facecolor="none", edgecolor=colour, hatch="///"
            )
        # Handles of no arm's colour.
        axes.barh(0, 0, color="0.4", label="best on dev")
        axes.barh(
            0, 0, facecolor="none", edgecolor="0.4", hatch="///", label="better than LoRA on test"
        )
        ticks(axes, "y", range(len(self.arms)), self.arms)
        axes.set_ylim(len(self.arms) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("sweeps")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        look, names = style_of(self.arms), [label(arm) for arm in self.arms]
        colours = [look[arm].colour for arm in self.arms]

        def marker(shape: str) -> dict[str, Any]:
            return {"color": colours, "pattern": {"shape": shape}}

        data = [
            {"type": "bar", "orientation": "h", "name": name, "y": names,
             "x": [of[arm] for arm in self.arms],
             "marker": {"color": colours, "pattern": {"shape": shape}},
             "hovertemplate": f"%{{y}}: {name} in %{{x}} sweeps<extra></extra>"}
            for name, of, shape in (
                ("best on dev", self.on_dev, ""),
                ("better than LoRA on test", self.better, "/"),
            )
        ]  # fmt: skip
        layout = {
            "height": 180 + 44 * len(names),
            "barmode": "group",
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
            "xaxis": {
                "title": {"text": "sweeps"},
                "tickformat": "d",
                "rangemode": "tozero",
                **({"dtick": 1} if max(self.on_dev.values(), default=0) < FEW else {}),
            },
            "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
        }
        return {"data": data, "layout": layout}


# -- beside LoRA -----------------------------------------------------------------------------------


def gaps_of(sweep: SweepRecord, place: int) -> list[Gap]:
    """The arms of a sweep beside its tuned LoRA: on test as far as confirmed, and on dev."""
    objective, found = sweep.objective, []
    choices = choices_of(sweep)
    lora = tuned_lora(choices)
    seen: set[str] = set() if lora is None else {lora.row.arm}
    for choice in choices if lora is not None else ():
        assert lora is not None
        if choice.row.arm in seen:
            continue
        seen.add(choice.row.arm)
        gap = objective.gain(choice.seeds.mean) - objective.gain(lora.seeds.mean)
        found.append(Gap(sweep.run.sweep, place, choice.row.arm, "dev", gap))
    rows = () if sweep.comparison is None else sweep.comparison.rows
    beside = next((row for row in rows if "lora" in (row.arm, row.method)), None)
    for row in rows if beside is not None else ():
        assert beside is not None
        if row is beside:
            continue
        gap = objective.gain(row.mean) - objective.gain(beside.mean)
        span = None if row.adjusted is None else sorted(map(objective.gain, row.adjusted))
        low, high = span or (None, None)
        found.append(Gap(sweep.run.sweep, place, row.arm, "test", gap, low, high, row.verdict))
    return found


def gap_panel(record: TaskRecord) -> Panel | Absent:
    """Each arm's best less tuned LoRA, in every sweep that has both."""
    names = [sweep.run.sweep for sweep in record.sweeps]
    gaps = [gap for place, sweep in enumerate(record.sweeps) for gap in gaps_of(sweep, place)]
    if not gaps:
        return Absent(
            GAP_KEY, GAP_TITLE, "no sweep has a complete LoRA and another arm to set beside it"
        )
    drawn = _Gaps(names, gaps)
    means = []
    for arm in dict.fromkeys(gap.arm for gap in gaps):
        of = [gap.gap for gap in gaps if gap.arm == arm and gap.split == "dev"]
        if of:
            means.append(
                f"{arm} {change(sum(of) / len(of))} on average ({plural(len(of), 'sweep')})"
            )
    tested = [gap for gap in gaps if gap.split == "test" and gap.verdict is not None]
    noise = sum(gap.low is not None and gap.low <= 0 <= (gap.high or 0) for gap in tested)
    says = f"On dev, from tuned LoRA: {', '.join(means)}."
    if tested:
        says += f" On test {noise} of {len(tested)} differences are within the noise."
    return Panel(
        GAP_KEY,
        GAP_TITLE,
        says=says,
        columns=["sweep", "arm", "split", "better_by", "low", "high", "verdict"],
        rows=[[g.sweep, g.arm, g.split, g.gap, g.low, g.high, g.verdict] for g in gaps],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


@dataclass(frozen=True)
class _Gaps:
    sweeps: Sequence[str]
    gaps: Sequence[Gap]

    @property
    def _arms(self) -> list[str]:
        return list(dict.fromkeys(gap.arm for gap in self.gaps))

    def _at(self, gap: Gap) -> float:
        """Where it stands: arms beside each other within their sweep."""
        count = len(self._arms)
        return round(gap.place + 0.7 * ((self._arms.index(gap.arm) + 0.5) / count - 0.5), 3)

    def printed(self) -> Figure:
        figure, axes = plot(3.0 + 0.9 * len(self.sweeps), 4.6, GAP_TITLE)
        axes.axhline(0, color=INK[0], linewidth=1, label="tuned LoRA")
        for arm, style in style_of(self._arms).items():
            for split, face in (("dev", "none"), ("test", style.colour_light)):
                of = [g for g in self.gaps if (g.arm, g.split) == (arm, split)]
                if of:
                    axes.plot(
                        [self._at(g) for g in of], [g.gap for g in of], style.marker_matplotlib,
                        color=style.colour_light, markerfacecolor=face, markersize=6,
                        label=plain(f"{arm}, {split}"),
                    )  # fmt: skip
                for g in of:
                    if g.low is not None and g.high is not None:
                        axes.vlines(
                            self._at(g), g.low, g.high, color=style.colour_light, linewidth=1.2
                        )
        ticks(axes, "x", range(len(self.sweeps)), self.sweeps, rotation=20)
        axes.set_xlim(-0.6, len(self.sweeps) - 0.4)
        axes.set_ylabel("better by")
        axes.grid(axis="y", color="0.92")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        data: list[dict[str, Any]] = []
        for arm, style in style_of(self._arms).items():
            for split, symbol in (
                ("dev", f"{style.symbol_plotly}-open"),
                ("test", style.symbol_plotly),
            ):
                of = [g for g in self.gaps if (g.arm, g.split) == (arm, split)]
                if not of:
                    continue
                trace: dict[str, Any] = {
                    "type": "scatter", "mode": "markers", "name": f"{label(arm)}, {split}",
                    "x": [self._at(g) for g in of], "y": [round(g.gap, 6) for g in of],
                    "text": [
                        label(f"{g.sweep}: {arm} {change(g.gap)} on {split}"
                              + (f", {g.verdict}" if g.verdict else "")) for g in of
                    ],
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"symbol": symbol, "size": 9, "color": style.colour},
                }  # fmt: skip
                if any(g.low is not None for g in of):
                    trace["error_y"] = {
                        "type": "data", "symmetric": False, "color": style.colour,
                        "thickness": 1.2, "width": 4,
                        "array": [round((g.gap if g.high is None else g.high) - g.gap, 6)
                                  for g in of],
                        "arrayminus": [round(g.gap - (g.gap if g.low is None else g.low), 6)
                                       for g in of],
                    }  # fmt: skip
                data.append(trace)
        layout = {
            "height": 460,
            "xaxis": {
                "tickvals": list(range(len(self.sweeps))), "automargin": True, "zeroline": False,
                "ticktext": [label(name) for name in self.sweeps], "showgrid": False,
                "range": [-0.6, len(self.sweeps) - 0.4],
            },
            "yaxis": {"title": {"text": "better than tuned LoRA by"}, "automargin": True},
            "legend": {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0},
            "shapes": [
                {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0, "y1": 0,
                 "line": {"color": both(*INK), "width": 1}}
            ],
        }  # fmt: skip
        return {"data": data, "layout": layout}
