"""Numbers as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.wording import duration


def value(number: float | None, digits: int = 4) -> str:
    """A metric or any other number: four digits that tell, thousands separated."""
    if number is None or not math.isfinite(number):
        return "–"
    size = abs(number)
    if size < 1e-9:
        return "0"
    if size >= 10**digits:
        return f"{number:,.0f}"
    if size < 1e-3:
        return f"{number:.2g}"
    whole = max(0, math.floor(math.log10(size)) + 1)
    return f"{number:.{max(0, digits - whole)}f}"


def change(number: float) -> str:
    """A difference, with its sign."""
    shown = value(abs(number))
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


def round_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten within a range above 0, for an axis with a logarithmic scale;
    the ends where no two of them are in it."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    if len(found) > 9:
        found = [each for each in found if math.log10(each).is_integer()]
    return [(each, short_count(each)) for each in (found if len(found) > 1 else [low, high])]


def sentence(text: str) -> str:
    """A text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


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
