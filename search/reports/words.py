"""Numbers as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.wording import duration


def value(number: float | None, digits: int = 4) -> str:
    """A metric or any other number: four digits that tell, thousands separated."""
    if number is None or not math.isfinite(number):
        return "–"
    if number == 0:
        return "0"
    size = abs(number)
    if size >= 10**digits:
        return f"{number:,.0f}"
    if size < 1e-3:
        return f"{number:.2g}"
    return f"{number:.{max(0, digits - max(1, math.floor(math.log10(size)) + 1))}f}"


def change(number: float) -> str:
    """A difference, with its sign."""
    shown = value(abs(number), 3)
    return shown if shown == "0" else f"{'+' if number > 0 else '−'}{shown}"


def count(number: float) -> str:
    """How many, thousands separated."""
    return f"{number:,.0f}"


def short_count(number: float) -> str:
    """How many, for an axis: 950, 53k, 1.2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def hours(seconds: float) -> str:
    """A duration: minutes and seconds below an hour, hours with two digits above ten."""
    return duration(seconds) if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
