"""The commands sweeps list, show and remove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import CsvOption, JsonOption, TrackingOption, app
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
from search.wording import moment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.queries.sweeps import Sweep

WIDE_SWEEPS = 120
"""From so many columns on a sweep of `sweeps list` stands on a line of its own."""
sweeps_app = typer.Typer(help="The sweeps in MLflow and in the folders here.", no_args_is_help=True)
app.add_typer(sweeps_app, name="sweeps")
SweepName = Annotated[
    str, typer.Argument(metavar="NAME", help="A sweep's name, of which the newest; or a run id.")
]


@sweeps_app.command("list")
@prints_result
def sweeps_list(
    *,
    task: Annotated[
        str | None, typer.Option("--task", metavar="T", help="Only those of this task.")
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="S",
            help="Only those that are running, gone, complete, failed, interrupted or unrecorded.",
        ),
    ] = None,
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
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
    csv_output: CsvOption = False,
) -> Result:
    """List the sweeps that MLflow has, and those that have a folder here, the newest first."""
    from search.paths import SweepPaths
    from search.queries.sweeps import sweeps

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
    root = SweepPaths().absolute().root
    found = sweeps(_tracking(tracking), root, task=task, state=state, where=where)
    return Result(_documents(found), [sweeps_table(found)] if found else ["no sweeps"])


@sweeps_app.command("show")
@prints_result
def sweeps_show(
    name: SweepName, tracking: TrackingOption = None, json_output: JsonOption = False
) -> Result:
    """Show one sweep: how it stands, its best, where it is."""
    from search.paths import SweepPaths
    from search.queries.sweeps import sweep_called
    from search.tracking.ui import ui_link

    uri = _tracking(tracking)
    found = sweep_called(uri, SweepPaths().absolute().root, name)
    link = None
    if uri is not None and found.experiment_id is not None:
        link = ui_link(uri, found.experiment_id, found.run_id)
    shown: list[RenderableType] = [sweep_table(found), *([] if link is None else [link])]
    return Result(_documents([found])[0], shown)


@sweeps_app.command("remove")
@prints_result
def sweeps_remove(
    name: SweepName,
    records: Annotated[
        bool,
        typer.Option("--records", help="Its runs in MLflow too; without it they stay."),
    ] = False,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Remove the folder of a sweep that does not run, and is no champion's."""
    from search.launch.removal import remove_sweep
    from search.paths import SweepPaths

    root = SweepPaths().absolute().root
    removed = remove_sweep(_tracking(tracking), root, name, records=records)
    lines = [] if removed.folder is None else [f"removed {removed.folder}"]
    if removed.runs:
        lines.append(f"deleted {len(removed.runs)} runs of {removed.name} in MLflow")
    folder = None if removed.folder is None else str(removed.folder)
    return Result({"name": removed.name, "folder": folder, "runs": removed.runs}, lines)


def _tracking(option: str | None) -> str | None:
    """The tracking URI; None where it is this directory's own database, which is not there yet."""
    from search.config.reading import resolve_tracking
    from search.tracking.mlflow import sqlite_file

    uri = resolve_tracking(option)
    file = sqlite_file(uri)
    nothing_yet = option is None and file is not None and not file.exists()
    return None if nothing_yet else uri


# -- drawing ---------------------------------------------------------------------------------------


def _documents(found: Sequence[Sweep]) -> list[dict[str, object]]:
    return [{**vars(each), "folder": _folder(each)} for each in found]


def _folder(sweep: Sweep) -> str | None:
    return None if sweep.folder is None else str(sweep.folder)


def sweeps_table(found: Sequence[Sweep]) -> RenderableType:
    """The sweeps, one a line where there is room."""
    return ByWidth(_wide_sweeps_table(found), _narrow_sweeps_table(found), at=WIDE_SWEEPS)


def _narrow_sweeps_table(found: Sequence[Sweep]) -> Table:
    """The same with all that is not compared by eye in one column."""
    table = Table(
        Column("name", overflow="fold"),
        Column("state", no_wrap=True),
        Column("trials", justify="right", no_wrap=True),
        Column("sweep", overflow="fold"),
    )
    for each in found:
        told = [each.task, each.base_uri, _best(each), moment(each.started_ms)]
        told += [f"by schedule {each.scheduled_by}"] if each.scheduled_by else []
        shown = "\n".join(line for line in told if line)
        add_row(table, each.name, each.state, _trials(each), shown)
        table.add_section()
    return table


def _wide_sweeps_table(found: Sequence[Sweep]) -> Table:
    table = Table(
        Column("name", overflow="fold"),
        Column("task", overflow="fold"),
        Column("base", overflow="fold"),
        Column("state", no_wrap=True),
        Column("trials", justify="right", no_wrap=True),
        Column("best on dev", justify="right", no_wrap=True),
        Column("started", no_wrap=True),
        Column("schedule", overflow="fold"),
    )
    for each in found:
        add_row(
            table,
            each.name,
            each.task or None,
            each.base_uri or None,
            each.state,
            _trials(each),
            _best(each),
            moment(each.started_ms),
            each.scheduled_by,
        )
    return table


def _trials(sweep: Sweep) -> str:
    """Complete of begun; of a sweep that runs, of all that it is to try."""
    whole = sweep.begun
    if sweep.state == "running" and sweep.asked is not None:
        whole = max(whole, sweep.asked)
    return f"{sweep.trials}/{whole}"


def _best(sweep: Sweep) -> str | None:
    return None if sweep.value is None else f"{sweep.metric} {sweep.value:.4f}"


def sweep_table(sweep: Sweep) -> Table:
    """One sweep: a line for each thing that is known of it."""
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    best = None if sweep.value is None else f"{sweep.metric} {sweep.value:.4f}, {sweep.best_run}"
    trials = f"{sweep.trials} complete of {sweep.begun} begun"
    trials += f", {sweep.asked} asked for" if sweep.asked is not None else ""
    for name, told in (
        ("name", sweep.name),
        ("state", sweep.state),
        ("task", sweep.task or None),
        ("base", sweep.base_uri or None),
        ("trials", trials),
        ("best on dev", best),
        ("confirmations", sweep.confirmed),
        ("started", moment(sweep.started_ms)),
        ("ended", moment(sweep.ended_ms)),
        ("schedule", sweep.scheduled_by),
        ("launched on", sweep.host),
        ("run", sweep.run_id),
        ("folder", _folder(sweep)),
    ):
        add_row(table, name, told)
    return table
