"""Which rank each layer gets by each signal (Sensitivity-LoRA, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from search.queries.best_choice import BestChoice
from search.reports.colours import INK, NOISE, ArmStyle, both
from search.reports.drawing import plot, thinned, ticks
from search.reports.panel import Absent, Panel
from search.reports.profile_figures import ProfileReport
from search.reports.sweep.measured import label
from spaces.errors import RanksweepError
from spaces.methods.registry import from_record
from spaces.methods.sensitivity import RankBudget, SensitivityChoice, allocated_ranks
from spaces.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = "ranks-by-signal", "Rank of each layer by each signal (Sensitivity-LoRA, Fig. 3)"
SIGNALS: tuple[str, ...] = get_args(SensitivityChoice.model_fields["signal"].annotation)
_UNIFORM = "uniform"
_CALLED = {"combined": "combined", "global": "global (trace)", "local": "local (Topk, Eff. Rank)"}
_STYLES = {
    "combined": ArmStyle(*INK, "circle", "o"),
    "global": ArmStyle("#0072b2", "#56b4e9", "square", "s"),
    "local": ArmStyle("#d55e00", "#f28e4b", "triangle-up", "^"),
}
_LABELLED = 40


def ranks_panel(
    profile: Profile, report: ProfileReport, best: Sequence[BestChoice]
) -> Panel | Absent:
    """The ranks of the layers' modules together, at the best choice's budget."""
    choice, whose = _budget(best)
    drawn = _LayerRanks(report.layers, {}, choice.mean_rank)
    try:
        for signal in SIGNALS:
            by = SensitivityChoice.model_validate({**choice.model_dump(), "signal": signal})
            sums = dict.fromkeys(report.layers, 0)
            ranks = allocated_ranks(by, profile.targets, profile)
            for module, rank in zip(report.modules, ranks, strict=True):
                sums[module.layer] += rank
            drawn.sums[signal] = sums
    except RanksweepError as error:
        return Absent(*RANKS, str(error))
    drawn.sums[_UNIFORM] = dict.fromkeys(report.layers, 0)
    for module in report.modules:
        drawn.sums[_UNIFORM][module.layer] += choice.mean_rank
    total = sum(drawn.sums["combined"].values())
    told = "; ".join(_extremes(signal, drawn.sums[signal]) for signal in SIGNALS)
    return Panel(
        *RANKS,
        says=(
            f"Of {total:,} ranks over {len(report.modules)} modules (mean_rank "
            f"{choice.mean_rank}, {whose}) {told}."
        ),
        columns=["layer", "signal", "ranks"],
        rows=[
            [layer, signal, rank]
            for signal, sums in drawn.sums.items()
            for layer, rank in sums.items()
        ],
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


def _budget(best: Sequence[BestChoice]) -> tuple[SensitivityChoice, str]:
    """The best choice's budget, shared out in proportion, and whose it is."""
    for method in ("sensitivity", "joint"):
        for row in best:
            if row.method == method:
                found = from_record(row.choice)
                assert isinstance(found, RankBudget)
                shared = {
                    key: value
                    for key, value in found.as_dict().items()
                    if key in SensitivityChoice.model_fields and key not in ("method", "allocation")
                }
                return SensitivityChoice(**shared), f"that of the best {method} trial, {row.number}"
    return SensitivityChoice(), "the default, for no trial with a budget is complete"


def _extremes(signal: str, sums: Mapping[str, int]) -> str:
    most, least = max(sums, key=sums.__getitem__), min(sums, key=sums.__getitem__)
    return (
        f"{signal} gives layer {most} most ({sums[most]:,}) and layer {least} least "
        f"({sums[least]:,})"
    )


@dataclass(frozen=True)
class _LayerRanks:
    layers: Sequence[str]
    sums: dict[str, dict[str, int]]
    """Signal -> layer -> ranks."""
    mean_rank: int

    def printed(self) -> Figure:
        figure, axes = plot(
            3.0 + 0.28 * len(self.layers),
            4.0,
            f"Ranks of a layer's modules together, by signal, at mean_rank {self.mean_rank}",
        )
        places = range(len(self.layers))
        for signal, sums in self.sums.items():
            if signal == _UNIFORM:
                numbers = list(sums.values())
                axes.plot(places, numbers, "--", color=NOISE[0], label=_UNIFORM, zorder=1)
                continue
            axes.plot(
                places,
                list(sums.values()),
                color=_STYLES[signal].colour_light,
                marker=_STYLES[signal].marker_matplotlib,
                markersize=5,
                label=_CALLED[signal],
            )
        ticks(axes, "x", *thinned(self.layers, _LABELLED))
        axes.set_xlabel("layer")
        axes.set_ylabel("ranks")
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
        return figure

    def brushed(self) -> Mapping[str, Any]:
        layers = [label(layer) for layer in self.layers]
        data = []
        for signal, sums in self.sums.items():
            trace: dict[str, Any] = {
                "type": "scatter", "mode": "lines+markers", "x": layers, "y": list(sums.values()),
                "name": _CALLED.get(signal, signal),
                "hovertemplate": f"layer %{{x}}: %{{y}} ranks by {signal}<extra></extra>",
            }  # fmt: skip
            if signal == _UNIFORM:
                trace |= {"mode": "lines", "line": {"dash": "dash", "color": both(*NOISE)}}
            else:
                style = _STYLES[signal]
                trace |= {
                    "line": {"color": style.colour},
                    "marker": {"symbol": style.symbol_plotly, "size": 8},
                }
            data.append(trace)
        layout = {
            "height": 380,
            "xaxis": {"type": "category", "title": {"text": "layer"}, "automargin": True},
            "yaxis": {"title": {"text": "ranks"}, "automargin": True},
            "legend": {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0},
        }
        return {"data": data, "layout": layout}
