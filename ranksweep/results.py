"""What MLflow has of trials and sweeps, as frames of pandas or as typed rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from search.queries.filters import Filters
from spaces.errors import RanksweepError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from search.queries.best import BestRow
    from search.queries.comparison import Comparison
    from search.queries.history import Step


def frame(rows: Iterable[Any], of: type[Any] | None = None) -> pd.DataFrame:
    """Typed rows, such as `LaunchResult.best`, as a frame: a column for each field of their
    dataclass, in its order. `of` is that dataclass, for where there may be no rows."""
    import pandas as pd

    every = list(rows)
    kind = of or (type(every[0]) if every else None)
    names = [] if kind is None else [each.name for each in fields(kind)]
    return pd.DataFrame([[getattr(row, name) for name in names] for row in every], columns=names)


@overload
def best(
    task: str,
    *,
    base: str | None = ...,
    method: str | None = ...,
    metric: str | None = ...,
    max_params: int | None = ...,
    top: int | None = ...,
    pareto: bool = ...,
    data: str | None = ...,
    where: Filters | None = ...,
    tracking: str | None = ...,
    rows: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def best(
    task: str,
    *,
    base: str | None = ...,
    method: str | None = ...,
    metric: str | None = ...,
    max_params: int | None = ...,
    top: int | None = ...,
    pareto: bool = ...,
    data: str | None = ...,
    where: Filters | None = ...,
    tracking: str | None = ...,
    rows: Literal[True],
) -> list[BestRow]: ...


def best(
    task: str,
    *,
    base: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    max_params: int | None = None,
    top: int | None = 10,
    pareto: bool = False,
    data: str | None = None,
    where: Filters | None = None,
    tracking: str | None = None,
    rows: bool = False,
) -> pd.DataFrame | list[BestRow]:
    """The best complete trials of a task, best first: a row each (search/queries/best.py has the
    columns), or the typed rows themselves.

    `base` is a part of a base's name or the start of its fingerprint; `metric` ranks by another
    than the searched one; `pareto` gives the front of metric against parameters; `data` is the
    start of the fingerprint of other data than the newest trial's; `where` has the other filters of
    `ranksweep best`, as `ranksweep.Filters(sweep="mine", max_step_time=0.2)`. `tracking` is
    MLflow's URI, by default MLFLOW_TRACKING_URI or that of the working directory. Raises Error,
    with the reason, where there is none.
    """
    from search.config.reading import resolve_tracking
    from search.queries import best as its

    uri = resolve_tracking(tracking)
    asked: dict[str, Any] = {
        "base": base,
        "method": method,
        "metric": metric,
        "max_params": max_params,
        "data": data,
        "where": where,
    }
    found = its.best(uri, task, **asked, top=top, pareto=pareto)
    if not found:
        raise RanksweepError(its.why_none(uri, task, **asked))
    return found if rows else frame(found)


@overload
def compare(
    sweep: str | Sequence[str],
    *,
    against: str = ...,
    tracking: str | None = ...,
    rows: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def compare(
    sweep: str | Sequence[str],
    *,
    against: str = ...,
    tracking: str | None = ...,
    rows: Literal[True],
) -> Comparison: ...


def compare(
    sweep: str | Sequence[str],
    *,
    against: str = "lora",
    tracking: str | None = None,
    rows: bool = False,
) -> pd.DataFrame | Comparison:
    """The methods of a sweep, or of several, side by side on test, as confirmed, best mean first.

    A frame with a row each (`Confirmation` in search/queries/comparison.py has the columns).

    The frame's `attrs` have the `verdict` in one sentence, lines on what `fallen` choices do not
    hold, and the metric of a `constant_answer`; with `rows`, the `Comparison` itself has all that.
    `sweep` is a name or a run id, `against` the arm or method that the others are set beside.
    Raises Error where there is no such sweep, or nothing of it was confirmed.
    """
    from search.config.reading import resolve_tracking
    from search.queries import comparison

    compared = comparison.compare(resolve_tracking(tracking), sweep, against)
    if rows:
        return compared
    made = frame(compared.rows, comparison.Confirmation)
    made.attrs = {
        "verdict": comparison.verdict(compared.rows, against),
        "fallen": list(compared.fallen),
        "constant_answer": compared.constant,
    }
    return made


@overload
def history(
    task: str,
    *,
    base: str | None = ...,
    top: int | None = ...,
    where: Filters | None = ...,
    tracking: str | None = ...,
    rows: Literal[False] = ...,
) -> pd.DataFrame: ...


@overload
def history(
    task: str,
    *,
    base: str | None = ...,
    top: int | None = ...,
    where: Filters | None = ...,
    tracking: str | None = ...,
    rows: Literal[True],
) -> list[Step]: ...


def history(
    task: str,
    *,
    base: str | None = None,
    top: int | None = None,
    where: Filters | None = None,
    tracking: str | None = None,
    rows: bool = False,
) -> pd.DataFrame | list[Step]:
    """How the best of a task has moved from sweep to sweep, base by base, the oldest first: a row
    for each sweep (`Step` in search/queries/history.py has the columns), or the typed rows.

    Of each base the `top` newest sweeps are given. Raises Error, with the reason, where there is
    none.
    """
    from search.config.reading import resolve_tracking
    from search.queries import history as its

    uri = resolve_tracking(tracking)
    found = its.history(uri, task, base=base, top=top, where=where)
    if not found:
        raise RanksweepError(its.why_none(uri, task, base))
    return found if rows else frame(found)


def report(
    sweep: str | None = None,
    out: str | os.PathLike[str] = "report",
    *,
    task: str | None = None,
    store: str | None = None,
    tracking: str | None = None,
) -> Path:
    """Write the report of a sweep, or of all sweeps of a task, into the folder `out`, as
    `ranksweep report` does; returns its page, which a browser opens from the file.

    `sweep` is a name or a run id; `store` is where its profile is, by default the sweep's own.
    Raises Error where there is no such sweep, ConfigError where the folder holds something else.
    """
    if (sweep is None) == (task is None):
        raise UsageError("sweep, task: name one of the two")
    from search.config.reading import resolve_tracking
    from search.reports.write import report_sweep
    from search.tracking.runs import RecordedRuns

    uri, folder = resolve_tracking(tracking), Path(out)
    if sweep is not None:
        return Path(report_sweep(RecordedRuns(uri), sweep, folder, store=store).page)
    assert task is not None
    from search.reports.task.report import write_task_report

    return Path(write_task_report(uri, task, folder).page)
