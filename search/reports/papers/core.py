"""Core rows and columns: where the important weights are (TASO, Fig. 2).

The paper shows the masked weights of a few matrices. A profile has how many of them each row and
column holds, of every module; the core is made of those that hold most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.queries.best_choice import BestChoice
from search.reports.heat_map import HeatMap, bins_for
from search.reports.panel import Absent, Panel
from search.reports.profile_figures import ProfileReport, binned
from search.wording import percent
from spaces.errors import RanksweepError
from spaces.methods.registry import from_record
from spaces.methods.taso import Core, TasoChoice, core
from spaces.profile import Profile
from spaces.target import TargetModule

CORE = "core-rows-and-columns", "Core rows and columns (TASO, Fig. 2)"


def core_panel(
    profile: Profile, report: ProfileReport, best: Sequence[BestChoice]
) -> Panel | Absent:
    """The core of the sweep's best TASO choice, else of the paper's."""
    choice, whose = _chosen(profile, best)
    targets = profile.targets
    try:
        cores = core(choice, targets, profile)
    except RanksweepError as error:
        return Absent(*CORE, str(error))
    bins = bins_for(2 * len(report.cells))
    cells: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for target, module, (rows, cols) in zip(targets, report.modules, cores, strict=True):
        for what, indices, size in (
            ("rows", rows, target.shape[0]),
            ("columns", cols, target.shape[1]),
        ):
            share = 100 * binned(_mask(indices, size), bins)
            cells.setdefault((module.layer, f"{module.kind}, {what}"), []).append(share)
    drawn = HeatMap(
        title=f"Core rows and columns at {_settings(choice)}",
        measure="% in the core",
        within="rows or columns",
        layers=report.layers,
        kinds=[f"{kind}, {what}" for what in ("rows", "columns") for kind in report.kinds],
        cells={place: np.mean(given, axis=0) for place, given in cells.items()},
        bins=bins,
    )
    return Panel(
        *CORE,
        says=(
            f"At {_settings(choice)} ({whose}) the core has "
            f"{_share(cores, targets, 0)} rows and {_share(cores, targets, 1)} columns. "
            f"{_held(choice, targets, cores, profile)}"
        ),
        columns=["layer", "kind", "rows_or_columns", "percent_core"],
        rows=drawn.numbers(),
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


def _chosen(profile: Profile, best: Sequence[BestChoice]) -> tuple[TasoChoice, str]:
    """The choice whose core is shown, and whose it is."""
    for row in best:
        if row.method == "taso":
            found = from_record(row.choice)
            assert isinstance(found, TasoChoice)
            return found, f"the best TASO choice, trial {row.number}"
    default = TasoChoice()
    grid = profile.top_percent_grid
    if grid and default.top_percent not in grid:
        default = TasoChoice(top_percent=grid[-1])
    return default, "the paper's choice, for no TASO trial is complete"


def _settings(choice: TasoChoice) -> str:
    return (
        f"retention {percent(choice.retention)} and top {choice.top_percent:g}% of the weights by "
        f"{choice.importance}"
    )


def _mask(indices: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=np.bool_)
    mask[indices] = True
    return mask


def _share(cores: Sequence[Core], targets: Sequence[TargetModule], side: int) -> str:
    """How many rows (side 0) or columns (side 1) are in the core, and of how many."""
    part = sum(len(each[side]) for each in cores)
    whole = sum(target.shape[side] for target in targets)
    return f"{part:,} of {whole:,} ({percent(round(part / whole, 3) if whole else 0)})"


def _held(
    choice: TasoChoice, targets: Sequence[TargetModule], cores: Sequence[Core], profile: Profile
) -> str:
    """How much of the masked weights the core's rows and columns hold, beside an even spread."""
    kind = "gradient" if choice.importance == "gradient" else "sensitivity"
    line = profile.grid_line(choice.top_percent)
    told = []
    for side, name, what in ((0, "row", "rows"), (1, "col", "columns")):
        held = whole = even = 0.0
        for target, each in zip(targets, cores, strict=True):
            counts = profile.require(target.name, f"{kind}_{name}_count")[line]
            total = float(counts.sum(dtype=np.int64))
            held += float(counts[each[side]].sum(dtype=np.int64))
            even += total * len(each[side]) / len(counts)
            whole += total
        if whole:
            told.append(
                f"its {what} {percent(round(held / whole, 3))} "
                f"(spread evenly: {percent(round(even / whole, 3))})"
            )
    return f"Of the masked weights {' and '.join(told)} hold." if told else ""
