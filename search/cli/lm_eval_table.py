"""lm-eval's scores of a sweep's confirmations, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.table import Column, Table

from search.cli.output import add_row

if TYPE_CHECKING:
    from search.queries.comparison import Confirmation

_ERROR = "_stderr"
"""In the name of a standard error, which has no line of its own."""


def lm_eval_table(rows: Sequence[Confirmation], base: Mapping[str, float]) -> list[Table]:
    """The scores as a table, one line each: of the untouched base, and of each choice the mean
    over its seeds with their standard deviation. No table where there are none."""
    scores = sorted({name for row in rows for name in row.lm_eval} | set(base))
    if not scores:
        return []
    table = Table(
        Column("score", overflow="fold"),
        *(Column(name, justify="right") for name in ("base", *(row.arm for row in rows))),
        title="by lm-eval",
        title_justify="left",
    )
    for score in scores:
        if _ERROR not in score:
            own = f"{base[score]:.4f}" if score in base else None
            add_row(table, score, own, *(_over_seeds(row.lm_eval.get(score, ())) for row in rows))
    return [table]


def _over_seeds(values: Sequence[float]) -> str | None:
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else None
    return f"{mean(values):.4f} ± {stdev(values):.4f}"
