"""Which rows matter: their importance, and the pattern of those that dominate (PiLoRA, Fig. 2, 3).

The papers show the entries of a few matrices. A profile has sums over rows, of every module, so all
layers and kinds are shown, each module's rows from the first to the last in bins.
"""

from __future__ import annotations

from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from search.reports.heat_map import HeatMap, bins_for
from search.reports.panel import Absent, Panel
from search.reports.profile_figures import ProfileReport, binned
from search.reports.profile_pictures import importance_map
from search.wording import percent
from spaces.errors import RanksweepError
from spaces.methods.pilora import Partition, dominant_rows
from spaces.profile import Profile

IMPORTANCE = "row-importance", "Row importance by layer (PiLoRA, Fig. 2)"
PATTERN = "dominant-pattern", "Pattern of the dominant rows (PiLoRA, Fig. 3)"
_TOP = 0.1


def importance_panel(profile: Profile, report: ProfileReport) -> Panel | Absent:
    """Mean |G| of the rows of every module."""
    if (why := report.absent.get("row_importance")) is not None:
        return Absent(*IMPORTANCE, why)
    drawn = importance_map(report, bins_for(len(report.cells)))
    means = {place: float(values.mean()) for place, values in drawn.cells.items()}
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    shares = [
        _held_by_the_top(module.row_importance)
        for module in profile.modules.values()
        if module.row_importance is not None and np.any(module.row_importance)
    ]
    held = (
        f" The top {percent(_TOP)} of a module's rows hold {percent(round(fmean(shares), 3))} "
        f"of its importance on average; were all alike, {percent(_TOP)}."
        if shares
        else ""
    )
    return Panel(
        *IMPORTANCE,
        says=(
            f"The gradient is largest in {_named(most)} (mean |G| {means[most]:.2e} a row) and "
            f"smallest in {_named(least)} ({means[least]:.2e}).{held}"
        ),
        columns=["layer", "kind", "rows", "mean_abs_gradient"],
        rows=drawn.numbers(),
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


def pattern_panel(profile: Profile, report: ProfileReport) -> Panel | Absent:
    """Where in each module the dominant rows are, by the paper's rule."""
    masks = dominant_masks(profile)
    if not masks:
        return Absent(*PATTERN, report.absent.get("dominant_rows", "no module has scored rows"))
    bins = bins_for(len(report.cells))
    shares: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for target, module in zip(profile.targets, report.modules, strict=True):
        if (mask := masks.get(target.name)) is not None:
            shares.setdefault((module.layer, module.kind), []).append(100 * binned(mask, bins))
    drawn = HeatMap(
        title=f"Dominant rows: hit on more than half of the {profile.scored_steps} scored steps",
        measure="% of rows dominant",
        within="rows",
        layers=report.layers,
        kinds=report.kinds,
        cells={place: np.mean(given, axis=0) for place, given in shares.items()},
        bins=bins,
    )
    kinds = report.dominant()
    most = max(kinds, key=lambda kind: kinds[kind].share)
    least = min(kinds, key=lambda kind: kinds[kind].share)
    every = sum(int(mask.sum()) for mask in masks.values())
    rows = sum(len(mask) for mask in masks.values())
    return Panel(
        *PATTERN,
        says=(
            f"{every:,} of {rows:,} rows ({percent(round(every / rows, 3))}) are dominant: above "
            f"their module's mean on more than half of the {profile.scored_steps} scored steps. "
            f"By kind it is from {percent(round(kinds[least].share, 3))} ({least}) to "
            f"{percent(round(kinds[most].share, 3))} ({most})."
        ),
        columns=["layer", "kind", "rows", "percent_dominant"],
        rows=drawn.numbers(),
        printed=drawn.printed,
        brushed=drawn.brushed,
    )


def dominant_masks(profile: Profile) -> dict[str, NDArray[np.bool_]]:
    """Module -> which of its rows are dominant by PiLoRA's default rule, bool [out].

    Modules of which the profile does not tell are left out.
    """
    found = {}
    for place, target in enumerate(profile.targets):
        try:
            rows = dominant_rows(Partition(), target, profile, (0, place))
        except RanksweepError:
            continue
        found[target.name] = np.zeros(target.shape[0], dtype=np.bool_)
        found[target.name][rows] = True
    return found


def _held_by_the_top(importance: NDArray[np.float32]) -> float:
    count = max(1, round(_TOP * importance.shape[0]))
    largest = np.sort(importance.astype(np.float64))[-count:]
    return float(largest.sum() / importance.sum(dtype=np.float64))


def _named(place: tuple[str, str]) -> str:
    layer, kind = place
    return kind if layer == "-" else f"{kind} of layer {layer}"
