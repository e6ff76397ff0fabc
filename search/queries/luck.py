"""How much of what a choice was chosen for was luck.

The best of many is chosen for its value on dev, and part of that value is noise that fell its way.
The seeds that confirm it were not chosen: what they measure on dev is what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from search.objective import Objective

if TYPE_CHECKING:
    from search.queries.comparison import Confirmation


def luck_of(row: Confirmation, chosen_at: float, objective: Objective) -> float | None:
    """By how much a choice is worse on dev over its confirming seeds than when it was chosen; None
    where that is not known, below zero where it is better."""
    if not row.on_dev:
        return None
    return objective.gain(chosen_at) - objective.gain(fmean(row.on_dev))


def luck_line(
    rows: Sequence[Confirmation], objective: Objective, beside: Confirmation | None, name: str
) -> str | None:
    """One sentence on the choice that was best on dev: what it has kept of its value, and of its
    lead over `beside` (called `name`), or where it is that itself, over the next best.

    None where dev's values are not known of both.
    """
    known = [row for row in rows if row.chosen_at is not None and row.on_dev]
    if not known:
        return None
    first, *others = sorted(known, key=lambda row: -objective.gain(row.chosen_at or 0.0))
    told = (
        f"{first.arm} was best on dev when it was chosen ({first.chosen_at:.4f}), and over the "
        f"{len(first.on_dev)} seeds that confirm it has {fmean(first.on_dev):.4f} on dev and "
        f"{first.mean:.4f} on test"
    )
    if beside in others:
        other = beside
    elif others:
        other, name = others[0], others[0].arm
    else:
        return told
    assert other is not None
    lead = objective.gain(first.chosen_at or 0.0) - objective.gain(other.chosen_at or 0.0)
    left = objective.gain(fmean(first.on_dev)) - objective.gain(fmean(other.on_dev))
    if f"{lead:.4f}" == f"{0:.4f}":
        return f"{told}; {name} stood level with it then"
    if left >= lead or f"{lead - left:.4f}" == f"{0:.4f}":
        return f"{told}: all of the {lead:.4f} by which it led {name} on dev holds"
    if left <= 0:
        return f"{told}: nothing of the {lead:.4f} by which it led {name} on dev holds"
    return (
        f"{told}: of the {lead:.4f} by which it led {name} on dev, {lead - left:.4f} did not hold"
    )
