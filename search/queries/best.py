"""What MLflow alone can answer: the best trials of a task, and a Pareto front."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.objective import Mode
from search.queries.filters import Filters
from search.queries.leaders import Leaders
from search.queries.rows import (
    BestRow,
    front_of,
    on_dev,
    recorded,
    row_of,
    rows_of,
    same_data,
    say_what_is_warm,
    say_whose_launch_is_gone,
)
from search.tracking.conditions import Condition
from search.tracking.facts import RunFacts
from search.tracking.runs import RecordedRuns
from search.wording import moment
from spaces.errors import ConfigError, nearest

__all__ = ["BestRow", "best", "on_dev", "recorded", "rows_of", "why_none"]

logger = logging.getLogger(__name__)
LOOKED_AT = 1000
"""Trials that are read to tell why none meets what was asked."""


def best(
    tracking_uri: str,
    task: str,
    *,
    base: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    max_params: int | None = None,
    top: int | None = None,
    pareto: bool = False,
    experiment: str | None = None,
    mode: Mode | None = None,
    data: str | None = None,
    where: Filters | None = None,
) -> list[BestRow]:
    """The best complete trials of a task over all experiments, best first, by what they hold.

    Trials over other data cannot be compared, whatever the task is called: other rows, a longer
    `max_length`, another template. Those of the newest trial's data are ranked, or of the data
    whose fingerprint starts with `data`; a warning says what is left out.

    `base` is the start of a base's fingerprint or a part of its URI; `metric` defaults to the one
    that the trials were searched by, `mode` to what their sweep said (for another metric: `min` for
    losses and times, else `max`); `max_params` bounds `trainable_params`. `where` narrows down what
    these do not; the newest trial is the newest of who is asked for, whatever they take. `top` rows
    are returned (default 1). Equal values rank by fewer parameters. With `pareto`, the trials that
    no other beats in metric or parameters without losing in the other, fewest parameters first (all
    of them, unless `top` is given). A trial that was stopped, failed, or has no such metric is left
    out. A choice that its sweep has repeated with other seeds is one row, with the mean. A trial
    that started from the trained weights of another has trained for longer: it is left out, and
    said.

    Raises:
        ChoiceError: there is no such method.
        ConfigError: `top` or `max_params` is below 1, or the trials were searched by several
            metrics and none was named, or `data` is the start of no or of several fingerprints.
        TrackingError: the tracking server or database cannot be read, or has no such experiment.
    """
    if top is not None and top < 1:
        raise ConfigError(f"--top: {top} is not a number of rows; use 1 or more")
    filters = _filters(where, base, method, max_params)
    every = RecordedRuns(tracking_uri)
    if metric is None and mode is None and data is None and experiment is None:
        leaders = Leaders(every, task, filters)
        if leaders.is_told:
            say_whose_launch_is_gone(leaders.sweeps)
            say_what_is_warm(leaders.warm())
            _say_what_is_left_out(leaders.others(), leaders.data)
            if pareto:
                return leaders.front()[:top]
            return leaders.top(top or 1)
    rows = _all_read(every, task, filters, experiment, metric, mode)
    ranked = _of_the_same_data(rows, data)
    if data is None and rows:
        groups = {key: str(len(each)) for key, each in _by_data(rows).items()}
        own = ranked[0].data
        _say_what_is_left_out({k: n for k, n in groups.items() if k != own}, own)
    rows = ranked
    names = sorted({row.metric for row in rows})
    if len(names) > 1:
        raise ConfigError(
            f"--metric: the trials of task {task!r} were searched by {' and '.join(names)}; "
            "name one with --metric"
        )
    if len({row.mode for row in rows}) > 1:
        raise ConfigError(
            f"--metric: sweeps of task {task!r} disagree on whether more {names[0]} is better; "
            "choose trials by --base or --method"
        )
    rows = _met(every, task, rows, filters.what())
    rows.sort(key=lambda row: row.rank)
    if pareto:
        return front_of(rows)[:top]
    return rows[: top or 1]


def _filters(
    where: Filters | None, base: str | None, method: str | None, max_params: int | None
) -> Filters:
    asked = {"base": base, "method": method, "max_params": max_params}
    said: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    return replace(where or Filters(), **said)


def _all_read(
    every: RecordedRuns,
    task: str,
    filters: Filters,
    experiment: str | None,
    metric: str | None,
    mode: Mode | None,
) -> list[BestRow]:
    """The rows of whom the filters ask for, newest first, of all trials: the noise is of whole
    sweeps."""
    found = recorded(every.uri, {"task": task}, experiment=experiment, metric=metric, mode=mode)
    rows = [row for _, row in found if filters.is_of_base(row.base, row.base_uri)]
    return _met(every, task, rows, filters.who())


def _met(
    every: RecordedRuns, task: str, rows: list[BestRow], asked: Sequence[Condition]
) -> list[BestRow]:
    if not asked or not rows:
        return rows
    wanted = {"kind": "trial", "status": "complete", "task": task}
    kept = {run.run_id for run in every.search(wanted, every.experiments(), where=asked)}
    return [row for row in rows if row.run_id in kept]


def _of_the_same_data(rows: Sequence[BestRow], data: str | None) -> list[BestRow]:
    """The rows over the data that is asked for, else over that of the newest, which come first."""
    groups = _by_data(rows)
    if data is None:
        return next(iter(groups.values()), [])
    names = {key: {key, *(row.task_fingerprint for row in each)} for key, each in groups.items()}
    wanted = [k for k, of in names.items() if any(name and name.startswith(data) for name in of)]
    if rows and len(wanted) != 1:
        each = ", ".join(_data_name(key) for key in groups)
        are = "none" if not wanted else "several"
        raise ConfigError(f"--data: {data!r} is the start of {are} of the data: {each}")
    return [row for key in wanted for row in groups[key]]


def _by_data(rows: Sequence[BestRow]) -> dict[str | None, list[BestRow]]:
    groups: dict[str | None, list[BestRow]] = {}
    for row in rows:
        groups.setdefault(row.data, []).append(row)
    return groups


def _say_what_is_left_out(others: Mapping[str | None, str], ranked: str | None) -> None:
    if others:
        logger.warning(
            "ranked are the trials over the data of the newest, %s; left out for their rows, "
            "lengths or templates differ: %s (--data shows them)",
            _data_name(ranked),
            ", ".join(f"{each} over {_data_name(key)}" for key, each in others.items()),
        )


def _data_name(fingerprint: str | None) -> str:
    return "data that has no name" if fingerprint is None else fingerprint[:12]


def why_none(
    tracking_uri: str,
    task: str,
    *,
    base: str | None = None,
    method: str | None = None,
    metric: str | None = None,
    max_params: int | None = None,
    data: str | None = None,
    where: Filters | None = None,
) -> str:
    """Where `best` finds nothing: the first of what it was asked that no trial meets, in one line.

    Of more than a thousand trials the newest thousand are looked at. Raises ConfigError and
    TrackingError as `best` does.
    """
    asked = _filters(where, base, method, max_params)
    every = RecordedRuns(tracking_uri)
    experiments = every.experiments()
    wanted = {"kind": "trial", "status": "complete"}
    runs = every.search({**wanted, "task": task}, experiments, at_most=LOOKED_AT)
    if not runs:
        others = every.search({"kind": "sweep"}, experiments)
        others += every.search(wanted, experiments, at_most=LOOKED_AT)
        tasks = sorted({run.task for run in others} - {""})
        found = nearest(task, tasks) if tasks else "there is none of any task"
        return f"--task: no complete trial of task {task!r} is recorded; {found}"
    newest = "newest " if len(runs) == LOOKED_AT else ""
    metrics = sorted(set().union(*(run.metrics for run in runs)))
    if metric is not None and metric not in metrics:
        whole = f"the {newest}{len(runs):,} complete trials of task {task!r}"
        return f"--metric: none of {whole} has {metric!r}; {nearest(metric, metrics)}"
    same = same_data(runs)
    rows = [row for run in runs if (row := row_of(run, "", metric, None, same)) is not None]
    of = f"complete trials of task {task!r}"
    if asked.base is not None:
        bases = ", ".join(sorted({f"{row.base_uri} ({row.base[:12]})" for row in rows}))
        reason = (
            f"--base: none of the {newest}{len(rows):,} {of} is on {asked.base!r}; they are on "
            f"{bases}"
        )
        rows = [row for row in rows if asked.is_of_base(row.base, row.base_uri)]
        of = f"{of} on {asked.base!r}"
        if not rows:
            return reason
    if asked.method is not None:
        methods = ", ".join(sorted({row.method for row in rows}))
        reason = (
            f"--method: none of the {newest}{len(rows):,} {of} is of {asked.method!r}; they are of "
            f"{methods}"
        )
        rows, of = [row for row in rows if row.method == asked.method], f"{of} by {asked.method}"
        if not rows:
            return reason
    ranked = _of_the_same_data(rows, data)
    if len(ranked) < len(rows):
        rows, of = ranked, f"{of} over {_data_name(ranked[0].data)}"
    least = min((row.trainable_params for row in rows), default=0)
    if asked.max_params is not None and least > asked.max_params:
        return (
            f"--max-params: none of the {newest}{len(rows):,} {of} has so few parameters; the "
            f"least is {least:,}"
        )
    kept = {row.run_id for row in rows}
    other = _why_none_meets([run for run in runs if run.run_id in kept], asked)
    return other or f"--task: none of the {newest}{len(runs):,} {of} has all that is ranked by"


def _why_none_meets(runs: Sequence[RunFacts], asked: Filters) -> str | None:
    """The first of the other filters that no run meets."""
    for option, value, said in (
        ("--arm", asked.arm, {run.arm or "" for run in runs}),
        ("--sweep", asked.sweep, {run.sweep for run in runs}),
    ):
        if value is not None and value not in said:
            return f"{option}: none of these trials is of {value[:80]!r}; {nearest(value, said)}"
    for option, name, bound, is_least in (
        ("--min-params", "trainable_params", asked.min_params, False),
        ("--max-memory", "memory_bytes", asked.max_memory, True),
        ("--max-step-time", "step_time", asked.max_step_time, True),
    ):
        known = [run.metrics[name] for run in runs if name in run.metrics]
        if bound is not None and not known:
            return f"{option}: none of these trials has said so much; leave it out"
        if bound is not None and all(v > bound if is_least else v < bound for v in known):
            best = min(known) if is_least else max(known)
            return f"{option}: no trial is within it; the {'least' if is_least else 'most'} is " + (
                f"{best:,.4g}" if name == "step_time" else f"{best:,.0f}"
            )
    if (asked.since_ms, asked.until_ms) != (None, None):
        started = [run.started_ms for run in runs]
        begun, ended = moment(min(started, default=None)), moment(max(started, default=None))
        return f"--since, --until: what else is asked for was begun from {begun} to {ended}"
    if asked.tags:
        return "--tag: no trial that meets the rest carries it"
    return "no trial meets all of these at once" if asked != Filters() else None
