"""Where the hours went: by what was done, and by what it was done for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.queries.sweep_record import SweepRecord
from search.reports.colours import both
from search.reports.drawing import plot
from search.reports.panel import Absent, Panel
from search.reports.sweep.measured import arm_of, arms_of, label
from search.reports.words import hours, listed, value
from search.tracking.facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEY, TITLE = "hours", "Where the hours went"
KINDS = {
    "profile": ("#6b5aa8", "#b3a5ec"),
    "training": ("#0072b2", "#56b4e9"),
    "measuring": ("#a86f00", "#e69f00"),
    "start-up": ("#b8528f", "#e79ac4"),
    "waiting": ("#8b929c", "#8b929c"),
}
_HATCHES = dict(zip(KINDS, ("..", "", "//", "xx", "--"), strict=True))
_PATTERNS = dict(zip(KINDS, (".", "", "/", "x", "-"), strict=True))


@dataclass(frozen=True)
class Share:
    """Seconds that one group of workers was held for, by what it did and what for."""

    purpose: str
    kind: str
    seconds: float


def groups_of(record: SweepRecord) -> int:
    """How many groups of workers it was launched with."""
    groups = record.setting("cluster", "groups")
    return groups if isinstance(groups, int) and groups > 0 else 1


def gpus_of(record: SweepRecord) -> float:
    """How many GPUs a group holds."""
    each = record.setting("cluster", "resources_per_worker", "GPU") or 0
    workers = record.setting("cluster", "workers_per_group") or 1
    return float(each) * float(workers)


def shares_of(record: SweepRecord) -> list[Share]:
    """What every group was held for, in seconds of one group.

    Start-up is what a launch takes to prepare, and of a trial what is neither training nor
    measuring: making its plan's layers and the optimizer's state, and handing over what it has.
    Waiting is the time of the search and the confirmation of the last launch in which groups had no
    job, so far as its runs tell.
    """
    stages = record.seconds
    found = [Share("before the search", "start-up", groups_of(record) * stages.get("prepare", 0.0))]
    found.append(Share("before the search", "profile", _profile_seconds(record)))
    spent = record.spent
    for purpose, runs in _purposes(record):
        training = sum(spent[run.run_id].training for run in runs if run.run_id in spent)
        measuring = sum(spent[run.run_id].measuring for run in runs if run.run_id in spent)
        held = sum(_held(run) for run in runs if run.run_id in spent)
        found += [
            Share(purpose, "training", training),
            Share(purpose, "measuring", measuring),
            Share(purpose, "start-up", max(held - training - measuring, 0.0)),
        ]
    found.append(Share("between trials", "waiting", _waiting(record)))
    return [share for share in found if share.seconds > 0]


def _purposes(record: SweepRecord) -> list[tuple[str, Sequence[RunFacts]]]:
    by_arm = [
        (arm, [run for run in record.trials if arm_of(run) == arm]) for arm in arms_of(record)
    ]
    return [*by_arm, ("confirmation", record.confirmations)]


def _profile_seconds(record: SweepRecord) -> float:
    """What this sweep's groups took for its profile; nothing where another has computed it."""
    stage = record.seconds.get("profile")
    own = record.profile is not None and record.profile.parent == record.run.run_id
    if stage is None and own and record.profile is not None:
        stage = record.profile.metrics.get("seconds")
    return float(stage or 0.0)


def _held(run: RunFacts) -> float:
    return max((run.ended_ms or run.started_ms) - run.started_ms, 0) / 1000


def _waiting(record: SweepRecord) -> float:
    stages = record.seconds
    whole = groups_of(record) * (stages.get("search", 0.0) + stages.get("confirm", 0.0))
    if not whole or record.run.ended_ms is None:
        return 0.0
    began = record.run.ended_ms - 1000 * sum(stages.values())
    runs = [r for r in (*record.trials, *record.confirmations) if r.started_ms >= began - 1000]
    return max(whole - sum(_held(run) for run in runs), 0.0)


def hours_panel(record: SweepRecord) -> Panel | Absent:
    """Seconds of groups, and of GPUs where workers had some."""
    shares = shares_of(record)
    if not shares:
        return Absent(KEY, TITLE, "no trial has said how long it took")
    gpus = gpus_of(record)
    whole = sum(share.seconds for share in shares)
    return Panel(
        key=KEY,
        title=TITLE,
        says=_says(record, shares),
        columns=("for", "doing", "group-hours", "GPU-hours", "share"),
        rows=[
            (share.purpose, share.kind, round(share.seconds / 3600, 5),
             round(gpus * share.seconds / 3600, 5) if gpus else None,
             round(share.seconds / whole, 5))
            for share in shares
        ],
        printed=lambda: _printed(shares),
        brushed=lambda: _brushed(shares),
    )  # fmt: skip


def _says(record: SweepRecord, shares: Sequence[Share]) -> str:
    whole = sum(share.seconds for share in shares)
    by_kind = {kind: sum(share.seconds for share in shares if share.kind == kind) for kind in KINDS}
    told = [
        f"{kind} {hours(seconds)} ({seconds / whole:.0%})"
        for kind, seconds in sorted(by_kind.items(), key=lambda each: -each[1])
        if seconds
    ]
    groups = groups_of(record)
    of = "one group of workers" if groups == 1 else f"{groups:,} groups of workers together"
    text = f"{hours(whole)} of {of}: {listed(told)}."
    if gpus := gpus_of(record):
        text += f" That is {value(gpus * whole / 3600, 3)} GPU-hours."
    if record.profile is not None and not by_kind["profile"]:
        text += " The profile was there already."
    if record.confirmations:
        text += " Of a confirmation the training is told from its last epoch."
    return text


def _rows(shares: Sequence[Share]) -> list[str]:
    return list(dict.fromkeys(share.purpose for share in shares))


def _unit(shares: Sequence[Share]) -> tuple[str, float]:
    most = max(sum(s.seconds for s in shares if s.purpose == each) for each in _rows(shares))
    return ("hours", 3600.0) if most >= 5400 else ("minutes", 60.0)


def _brushed(shares: Sequence[Share]) -> Mapping[str, Any]:
    unit, size = _unit(shares)
    rows = _rows(shares)
    data = []
    for kind, colours in KINDS.items():
        mine = {share.purpose: share.seconds for share in shares if share.kind == kind}
        if mine:
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": kind,
                    "y": [label(row) for row in rows],
                    "x": [round(mine.get(row, 0.0) / size, 4) for row in rows],
                    "marker": {
                        "color": both(*colours),
                        "pattern": {
                            "shape": _PATTERNS[kind], "solidity": 0.25, "fillmode": "overlay",
                            "fgcolor": both("#ffffff", "#191d23"),
                        },
                    },
                    "hovertemplate": f"%{{y}}: {kind} %{{x:.2f}} {unit}<extra></extra>",
                }
            )  # fmt: skip
    return {
        "data": data,
        "layout": {
            "height": 170 + 36 * len(rows),
            "barmode": "stack",
            "legend": {"traceorder": "normal"},
            "bargap": 0.35,
            "xaxis": {"title": {"text": f"{unit} of a group"}},
            "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        },
    }


def _printed(shares: Sequence[Share]) -> Figure:
    unit, size = _unit(shares)
    rows = _rows(shares)
    figure, axes = plot(8.0, 1.4 + 0.36 * len(rows), TITLE)
    left = [0.0] * len(rows)
    for kind, (colour, _) in KINDS.items():
        mine = {share.purpose: share.seconds / size for share in shares if share.kind == kind}
        if not mine:
            continue
        lengths = [mine.get(row, 0.0) for row in rows]
        axes.barh(range(len(rows)), lengths, left=left, height=0.65, color=colour, label=kind,
                  hatch=_HATCHES[kind], edgecolor="white", linewidth=0.3)  # fmt: skip
        left = [a + b for a, b in zip(left, lengths, strict=True)]
    axes.set_yticks(range(len(rows)), rows, fontsize=9, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} of a group of workers")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
