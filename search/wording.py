"""How figures, durations, sizes and choices are written for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from humanize import naturalsize

from spaces.errors import shown


def knobs(choice: Mapping[str, Any]) -> str:
    """A choice on one line, without its method, learning rate and seed: "rank=8 alpha=16"."""
    hidden = ("method", "learning_rate", "seed")
    parts: list[str] = []
    for key, value in choice.items():
        if isinstance(value, Mapping):
            parts.extend(f"{inner}={_plain(part)}" for inner, part in value.items())
        elif key not in hidden:
            parts.append(f"{key}={_plain(value)}")
    return " ".join(parts) or "-"


def _plain(value: Any) -> str:
    return figure(value) if isinstance(value, float) else str(value)


def figure(value: Any) -> str:
    if value is None:
        return "-"
    return f"{float(value):.4g}"


def percent(share: float) -> str:
    """A share as a person writes it: 10%."""
    return f"{100 * share:.4g}%"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def age(published: Any, now: datetime) -> str:
    """How long ago a manifest's time (ISO 8601) was, in its largest unit: 40 s, 3 h, 12 d."""
    try:
        then = datetime.fromisoformat(published)
        seconds = max((now - then).total_seconds(), 0.0)
    except (TypeError, ValueError):  # no text, no time, or a time without its zone
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def moment(ms: int | None) -> str:
    """A time in milliseconds of Unix time as this machine's clock shows it, to the minute."""
    if ms is None:
        return "-"
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M")


MOST_CLASSES = 20


def classes_line(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Class -> split -> rows on one line: "'no' 48/30, 'yes' 52/31 (train/dev)"; the first 20."""
    first = [
        f"{shown(repr(label), 40)} {'/'.join(f'{count:,}' for count in of.values())}"
        for label, of in list(counts.items())[:MOST_CLASSES]
    ]
    more = f" and {len(counts) - len(first):,} more" if len(counts) > len(first) else ""
    return f"{', '.join(first)}{more} ({'/'.join(next(iter(counts.values())))})"


def tokens_line(task: Mapping[str, Any]) -> str:
    """How long the rows of each split are, of what a dry run or MLflow has of a task."""
    spans = (task[name] for name in ("median_tokens", "tokens_95_percent", "most_tokens"))
    halves, highs, mosts = spans
    return ", ".join(
        f"{halves[split]:,} / {highs[split]:,} / {mosts[split]:,} {split}" for split in halves
    )


def printable(value: Any) -> str:
    """A value of a manifest or a profile for one line; what would steer a terminal is replaced."""
    if value is None:
        return "-"
    return "".join(
        mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in str(value)
    )


def byte_size(size: Any) -> str:
    return naturalsize(size) if _is_number(size) else "-"


def seconds_text(spent: Any) -> str:
    if not _is_number(spent):
        return "-"
    return f"{spent:,.0f} s" if spent >= 9.95 else f"{spent:.1f} s"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
