"""Which hyperparameters mattered: over all methods, and within each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.queries.sweep_record import SweepRecord
from search.reports.colours import INK, both, style_of
from search.reports.drawing import plot
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import complete, keys_of, label
from search.reports.words import listed, plural
from search.study.importance import FEWEST, importances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "importance", "Which hyperparameters mattered"
ALL = "all methods"
MOST_KEYS = 6
"""Of each method; the rest is in the CSV."""


@dataclass(frozen=True)
class Part:
    """A key's part in the metric within a method, over so many of its trials."""

    of: str
    trials: int
    key: str
    share: float


def importance_panel(record: SweepRecord) -> Panel | Absent:
    """By Optuna, on the trials that ran to their end; what has collapsed is left out."""
    runs = [run for run in complete(record) if not run.collapsed]
    metric = record.objective.metric
    told = [(run.method, keys_of(run.choice or {}), run.metrics[metric]) for run in runs]
    shared = {
        key for _, keys, _ in told for key in keys if all(key in others for _, others, _ in told)
    }
    groups: dict[str, list[tuple[dict[str, Any], float]]] = {}
    if len({method for method, _, _ in told}) > 1:
        groups[ALL] = [
            ({"which method": method, **{k: keys[k] for k in keys if k in shared}}, value)
            for method, keys, value in told
        ]
    for method, keys, value in told:
        groups.setdefault(method, []).append((keys, value))
    parts = [
        Part(of, len(each), found.key, found.share)
        for of, each in groups.items()
        for found in importances(
            [keys for keys, _ in each], [value for _, value in each], record.objective
        )
    ]
    few = [of for of, each in groups.items() if len(each) < FEWEST]
    if not parts:
        why = (
            f"it takes {FEWEST} trials of a method that ran to their end and did not collapse, or "
            f"of methods with keys in common, that differ; there are {len(runs):,} of all methods"
        )
        return Absent(KEY, TITLE, why)
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, parts, few),
        columns=("method", "trials", "key", "share"),
        rows=[(part.of, part.trials, part.key, part.share) for part in parts],
        printed=lambda: _printed(parts),
        brushed=lambda: _brushed(parts),
    )


def _says(record: SweepRecord, parts: Sequence[Part], few: Sequence[str]) -> str:
    told = []
    for of in dict.fromkeys(part.of for part in parts):
        first = max((part for part in parts if part.of == of), key=lambda part: part.share)
        told.append(
            f"{f'within {of}' if of != ALL else 'over all methods'} it is {first.key} "
            f"({first.share:.0%} of the differences, {plural(first.trials, 'trial')})"
        )
    text = f"What makes most of the difference in {record.objective.metric}: {'; '.join(told)}."
    if few:
        text += f" Of {listed(few)} there are fewer than {FEWEST} trials, too few to say."
    if min(part.trials for part in parts) < 5 * FEWEST:
        text += " On so few trials these are hints."
    return text


def _shown(parts: Sequence[Part]) -> list[Part]:
    found: list[Part] = []
    for of in dict.fromkeys(part.of for part in parts):
        mine = sorted((part for part in parts if part.of == of), key=lambda part: -part.share)
        found += mine[:MOST_KEYS]
    return found


def _colour(of: str, look: Mapping[str, Any]) -> tuple[str, str]:
    return INK if of == ALL else (look[of].colour_light, look[of].colour_dark)


def _brushed(parts: Sequence[Part]) -> Mapping[str, Any]:
    shown = _shown(parts)
    look = style_of([part.of for part in shown if part.of != ALL])
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(of),
            "y": [[label(of)] * len(mine), [label(part.key) for part in mine]],
            "x": [round(part.share, 4) for part in mine],
            "marker": {"color": both(*_colour(of, look))},
            "hovertemplate": f"{label(of)}, %{{y}}: %{{x:.0%}} of the differences over "
            f"{plural(mine[0].trials, 'trial')}<extra></extra>",
            "showlegend": False,
        }
        for of in dict.fromkeys(part.of for part in shown)
        if (mine := [part for part in shown if part.of == of])
    ]
    return {
        "data": data,
        "layout": {
            "height": 130 + 24 * len(shown),
            "xaxis": {"title": {"text": "share of the differences"}, "tickformat": ".0%",
                      "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed", "type": "multicategory", "automargin": True},
            "bargap": 0.25,
        },
    }  # fmt: skip


def _printed(parts: Sequence[Part]) -> Figure:
    shown = _shown(parts)
    look = style_of([part.of for part in shown if part.of != ALL])
    figure, axes = plot(8.0, 1.2 + 0.26 * len(shown), TITLE)
    for place, part in enumerate(shown):
        colour, _ = _colour(part.of, look)
        axes.barh(place, 100 * part.share, height=0.7, color=colour)
        axes.text(100 * part.share + 0.6, place, f"{part.share:.0%}", va="center", fontsize=7.5)
    axes.set_yticks(
        range(len(shown)), [f"{part.of} ({part.trials}): {part.key}" for part in shown],
        fontsize=8, parse_math=False,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel("% of the differences (in brackets: trials)")
    return figure
