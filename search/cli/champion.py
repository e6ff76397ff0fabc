"""The commands promote, champion and history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import EXIT_FAILED, CsvOption, JsonOption, TrackingOption, app
from search.cli.narrowing import (
    ArmOption,
    BaseOption,
    MaxMemoryOption,
    MaxParamsOption,
    MaxStepTimeOption,
    MethodOption,
    MinParamsOption,
    SinceOption,
    SweepOption,
    TagOption,
    UntilOption,
    narrowed,
)
from search.cli.output import ByWidth, Result, add_row, prints_result
from search.cli.results import ItsBaseOption, OwnCodeOption
from search.wording import knobs, moment
from spaces.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.queries.champions import Champion
    from search.queries.history import Step
    from search.trained.promotion import Promotion

WIDE_HISTORY = 130
"""From so many columns on a sweep of `history` stands on a line of its own."""
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Name of the task.")]


@app.command()
@prints_result
def promote(
    run_id: Annotated[
        str | None, typer.Argument(metavar="RUN_ID", help="A trial, as `best` shows it.")
    ] = None,
    *,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="NAME", help="In its place: the best of this sweep."),
    ] = None,
    even_if_not_better: Annotated[
        bool,
        typer.Option(
            "--even-if-not-better",
            help="Also where it does not beat the champion, or cannot be compared with it.",
        ),
    ] = False,
    base: ItsBaseOption = None,
    own_code: OwnCodeOption = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Make a trial the champion of its task and base, where it is better beyond the noise."""
    if (run_id is None) == (sweep is None):
        raise ConfigError("RUN_ID: give the run of a trial, or --sweep NAME for the best of one")
    from search.config.reading import resolve_tracking
    from search.trained.promotion import promote as promote_trial
    from search.trained.promotion import promote_best_of

    uri = resolve_tracking(tracking)
    if run_id is not None:
        told = promote_trial(
            uri, run_id, even_if_not_better=even_if_not_better, base_uri=base, own_code=own_code
        )
    else:
        assert sweep is not None, "one of both is given"
        told = promote_best_of(
            uri, sweep, even_if_not_better=even_if_not_better, base_uri=base, own_code=own_code
        )
    return Result(told, promotion_lines(told), exit_code=0 if told.is_champion else EXIT_FAILED)


@app.command()
@prints_result
def champion(
    task: TaskArgument,
    base: BaseOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Tell who is champion of a task, on each base, and since when."""
    from search.config.reading import resolve_tracking
    from search.queries import champions

    uri = resolve_tracking(tracking)
    found = champions.champions(uri, task, base)
    error = "" if found else champions.why_none(uri, task, base)
    return Result(found, [champion_table(each) for each in found], error)


@app.command()
@prints_result
def history(
    task: TaskArgument,
    *,
    base: BaseOption = None,
    method: MethodOption = None,
    arm: ArmOption = None,
    min_params: MinParamsOption = None,
    max_params: MaxParamsOption = None,
    max_memory: MaxMemoryOption = None,
    max_step_time: MaxStepTimeOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    sweep: SweepOption = None,
    tag: TagOption = None,
    top: Annotated[
        int | None, typer.Option("--top", metavar="K", help="The K newest sweeps of each base.")
    ] = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
    csv_output: CsvOption = False,
) -> Result:
    """Tell how the best of a task has moved from sweep to sweep, base by base."""
    from search.config.reading import resolve_tracking
    from search.queries import history as its

    uri = resolve_tracking(tracking)
    where = narrowed(
        base=base,
        method=method,
        arm=arm,
        min_params=min_params,
        max_params=max_params,
        max_memory=max_memory,
        max_step_time=max_step_time,
        since=since,
        until=until,
        sweep=sweep,
        tag=tag,
    )
    steps = its.history(uri, task, top=top, where=where)
    error = "" if steps else its.why_none(uri, task, where=where)
    return Result(steps, history_tables(steps), error)


# -- drawing ---------------------------------------------------------------------------------------


def promotion_lines(told: Promotion) -> list[str]:
    """What was done, and why."""
    value = "" if told.value is None else f", {told.metric} {told.value:.4f} on test"
    if told.promoted:
        before = "" if told.before is None else f" in the place of version {told.before}"
        first = f"promoted: {told.model} version {told.version} is champion{before}{value}"
    elif told.is_champion:
        first = f"nothing to do: {told.model} version {told.version}{value}"
    else:
        first = f"not promoted: {told.model} version {told.version} stays champion"
    lines = [first, told.reason]
    if told.promoted:
        lines.append(f"models:/{told.model}@champion loads it with MLflow")
    return lines


def champion_table(who: Champion) -> Table:
    """One champion: a line for each thing that is known of it."""
    table = Table(show_header=False, title=f"{who.model}, version {who.version}")
    table.title_justify = "left"
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    seeds = ", ".join(f"{seed}: {value:.4f}" for seed, value in who.values.items())
    rate = who.choice.get("learning_rate")
    add_row(table, "since", moment(who.since_ms))
    add_row(table, "base", who.base_uri)
    add_row(table, "method", who.method)
    learning_rate = "" if rate is None else f" learning_rate={rate:.3g}"
    add_row(table, "choice", f"{knobs(who.choice)}{learning_rate}")
    if who.trainable_params:
        add_row(table, "parameters", f"{who.trainable_params:,}")
    test = "not measured" if who.value is None else f"{who.value:.4f}, mean of {len(who.values)}"
    add_row(table, f"{who.metric} on test", test)
    if seeds:
        add_row(table, "by seed", seeds)
    add_row(table, "sweep", who.sweep)
    add_row(table, "trial", who.trial_run or who.run_id)
    add_row(table, "its model's run", who.run_id)
    add_row(table, "because", who.because or None)
    return table


def history_tables(steps: Sequence[Step]) -> list[RenderableType]:
    """A table for each base."""
    of_base: dict[str, list[Step]] = {}
    for step in steps:
        of_base.setdefault(step.group, []).append(step)
    return [
        ByWidth(_wide_history_table(each), _narrow_history_table(each), at=WIDE_HISTORY)
        for each in of_base.values()
    ]


def _narrow_history_table(steps: Sequence[Step]) -> Table:
    """The same with all that is not compared by eye in one column."""
    table = Table(
        Column("started", no_wrap=True),
        Column("on dev", justify="right", no_wrap=True),
        Column("on test", justify="right", no_wrap=True),
        Column("sweep", overflow="fold"),
        title=f"{steps[0].base_name or steps[0].base_uri}, {_metric_of(steps)}",
        title_justify="left",
    )
    for step in steps:
        told = [f"{step.sweep}, {step.method}", *_marks(step, steps), step.run_id]
        add_row(table, moment(step.started_ms), *_values(step), "\n".join(told))
        table.add_section()
    return table


def _wide_history_table(steps: Sequence[Step]) -> Table:
    table = Table(
        Column("started", no_wrap=True),
        Column("sweep", overflow="fold"),
        Column("method", overflow="fold"),
        Column("on dev", justify="right", no_wrap=True),
        Column("on test", justify="right", no_wrap=True),
        Column("seeds", justify="right", no_wrap=True),
        Column("", overflow="fold"),
        Column("run", no_wrap=True),
        title=f"{steps[0].base_name or steps[0].base_uri}, {_metric_of(steps)}",
        title_justify="left",
    )
    for step in steps:
        add_row(
            table,
            moment(step.started_ms),
            step.sweep,
            step.method,
            *_values(step),
            step.seeds or None,
            ", ".join(_marks(step, steps)),
            step.run_id,
        )
    return table


def _metric_of(steps: Sequence[Step]) -> str:
    return " and ".join(sorted({step.metric for step in steps}))


def _values(step: Step) -> tuple[str, str | None]:
    return f"{step.value:.4f}", None if step.test is None else f"{step.test:.4f}"


def _marks(step: Step, steps: Sequence[Step]) -> list[str]:
    """What sets a sweep apart from the others of its base."""
    crown = "champion" if step.reigns else "was champion"
    return [
        *([f"on {step.base_uri.rpartition('/')[2]}"] if step.base_name else []),
        *({"running": ["still runs"], "gone": ["its launch is gone"]}.get(step.state, [])),
        *(["best so far"] if step.is_best else []),
        *([] if step.champion is None else [f"{crown}, version {step.champion}"]),
        *([] if step.data == steps[-1].data else ["other data"]),
        *([] if step.scheduled_by is None else [f"by schedule {step.scheduled_by}"]),
    ]
