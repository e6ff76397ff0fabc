"""Confirmed choices that do not hold what they were chosen for, told in a line each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING

from search.objective import Objective
from search.queries.best_choice import BestChoice
from search.queries.holding import Seeds
from search.wording import figure

if TYPE_CHECKING:
    from search.queries.comparison import Confirmation

FAR = 3.0
"""A mean that has fallen by more than so many standard errors is out of the noise. The best of many
is expected to fall by one or two: it was chosen for its value."""

FEW = 3
"""Degrees of freedom below which a deviation is not known."""


def fallen(
    confirmed: Sequence[Confirmation], chosen_from: Sequence[BestChoice], objective: Objective
) -> list[str]:
    """A line for each confirmed choice that has collapsed with a seed, or whose mean on dev over
    the seeds that confirm it lies far below the value that it was chosen for.

    `chosen_from` are the choices of each arm, best first, as the search has left them. A line names
    the next best of the arm, where there is one that was not confirmed.
    """
    known = {row.number: row for row in reversed(chosen_from)}
    lines, told = [], set()
    for row in confirmed:
        chosen = known.get(row.number)
        if chosen is None or row.number in told:
            continue
        told.add(row.number)
        if (why := _why(row, chosen, confirmed, chosen_from, objective)) is not None:
            lines.append(f"{row.arm} (trial {row.number}) does not hold: {why}")
            lines[-1] += _next(row, confirmed, chosen_from, objective)
    return lines


def _why(
    row: Confirmation,
    chosen: BestChoice,
    confirmed: Sequence[Confirmation],
    chosen_from: Sequence[BestChoice],
    objective: Objective,
) -> str | None:
    then = f"{objective.metric} on dev was {figure(chosen.value)} when it was chosen"
    again = Seeds(row.on_dev, row.collapsed)
    if row.on_dev:
        then += f", and is {figure(again.mean)} over the seeds that confirm it"
    if row.collapsed:
        return (
            f"{row.collapsed} of {len(row.values)} seeds collapsed (one class alone is predicted); "
            f"{then}"
        )
    if not row.on_dev:
        return None
    others = [Seeds(each.on_dev, each.collapsed) for each in confirmed if each is not row]
    others += [Seeds(each.values, each.collapsed) for each in chosen_from if each is not chosen]
    noise = _noise(others, again)
    error = noise * sqrt(1 / len(row.on_dev) + 1 / chosen.seeds)
    lost = objective.gain(chosen.value) - objective.gain(again.mean)
    return then if noise > 0 and lost > FAR * error else None


def _noise(others: Sequence[Seeds], own: Seeds) -> float:
    """The deviation between seeds, pooled over all other choices; its own hides what has fallen,
    and counts only where the others have too few seeds to say."""
    known = [each for each in others if len(each.values) > 1 and not each.collapsed]
    if sum(len(each.values) - 1 for each in known) < FEW and len(own.values) > 1:
        known.append(own)
    free = sum(len(each.values) - 1 for each in known)
    squares = sum((len(each.values) - 1) * each.deviation**2 for each in known)
    return sqrt(squares / free) if free else 0.0


def _next(
    row: Confirmation,
    confirmed: Sequence[Confirmation],
    chosen_from: Sequence[BestChoice],
    objective: Objective,
) -> str:
    done = {each.number for each in confirmed}
    rest: Iterator[BestChoice] = (
        each
        for each in chosen_from
        if each.arm == row.arm and each.number not in done and not each.collapsed
    )
    follows = next(rest, None)
    if follows is None:
        return ""
    seeds = f"{follows.seeds} seeds" if follows.seeds > 1 else "one seed"
    return (
        f"; the next best is trial {follows.number}, {figure(follows.value)} with {seeds}: "
        "--resume with a larger confirm.top confirms it too"
    )
