"""The commands trials list, stop, enqueue and clone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from search.cli.app import JsonOption, app
from search.cli.output import ByWidth, Result, add_row, prints_result
from search.wording import figure, knobs, percent
from spaces.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from search.paths import SweepPaths
    from search.study.requests import Request
    from search.study.study import Study
    from search.study.trial_list import RequestRow, TrialRow

ANSWER_S = 20.0
"""How long an answer is waited for: the driver looks every couple of seconds."""
WIDE = 120
"""From so many columns on a trial of `list` stands on a line of its own."""

trials_app = typer.Typer(
    help="The trials of a sweep, which can be steered while it runs.", no_args_is_help=True
)
app.add_typer(trials_app, name="trials")

StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study", metavar="URL", help="The study's database; default: that of the sweep's folder."
    ),
]
Number = Annotated[int, typer.Argument(metavar="N", help="The trial's number.")]


@trials_app.callback()
def of_sweep(
    context: typer.Context,
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name.")],
) -> None:
    """The trials of a sweep, which can be steered while it runs."""
    from search.paths import SweepPaths, check_sweep_name

    context.obj = SweepPaths(name=check_sweep_name(sweep)).absolute()


@trials_app.command("list")
@prints_result
def trials_list(
    context: typer.Context, study: StudyOption = None, json_output: JsonOption = False
) -> Result:
    """List the trials: how far they are, what they have, and who has asked for them."""
    from search.study.asking import listening, study_of_sweep
    from search.study.trial_list import request_rows, trial_rows

    opened = study_of_sweep(context.obj, study)
    rows, asked = trial_rows(opened), request_rows(opened)
    runs = bool(listening(opened))
    lines = [_request_line(each) for each in asked]
    if not runs and any(each.state == "running" for each in rows):
        lines.append("what stands as running was cut off, and is trained again by launch --resume")
    if not runs and any(each.state != "refused" for each in asked):
        lines.append(_nobody(context.obj))
    drawn = [trials_table(rows)] if rows else ["no trial has begun"]
    return Result({"trials": rows, "requests": asked, "runs": runs}, [*drawn, *lines])


@trials_app.command("stop")
@prints_result
def trials_stop(
    context: typer.Context,
    number: Number,
    study: StudyOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Stop one running trial for good: --resume does not train it again."""
    from search.study.asking import stop_trial, study_of_sweep

    opened = study_of_sweep(context.obj, study)
    request = stop_trial(opened, number)
    return _told(opened, request, context.obj, f"trial {number} is stopped")


@trials_app.command("enqueue")
@prints_result
def trials_enqueue(
    context: typer.Context,
    choice_file: Annotated[
        Path, typer.Argument(metavar="CHOICE.yaml", help="A method and its settings.")
    ],
    study: StudyOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Ask for a choice to be trained next, beside search.trials."""
    from search.config.yaml_file import read_mapping
    from search.study.asking import enqueue_choice, study_of_sweep

    written = read_mapping(choice_file)
    opened = study_of_sweep(context.obj, study)
    request = enqueue_choice(opened, context.obj, written)
    return _told(opened, request, context.obj, "accepted; it is trained next")


@trials_app.command("clone")
@prints_result
def trials_clone(
    context: typer.Context,
    number: Number,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a key of its choice, as learning_rate=1e-3."
        ),
    ] = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Start from the trial's trained weights.")
    ] = False,
    study: StudyOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Ask for a changed copy of a trial to be trained next, beside search.trials."""
    from search.study.asking import clone_trial, study_of_sweep

    opened = study_of_sweep(context.obj, study)
    request = clone_trial(opened, context.obj, number, overrides or (), warm=warm)
    return _told(opened, request, context.obj, "accepted; it is trained next")


def _told(opened: Study, request: Request, paths: SweepPaths, done: str) -> Result:
    """What has become of a request: done or refused by a driver, or left in the study."""
    from search.study.asking import listening, wait_for_answer

    runs = bool(listening(opened))
    said = wait_for_answer(opened, request, ANSWER_S) if runs else None
    state = "waits" if said is None else "accepted" if said.accepted else "refused"
    document = {
        "request": request,
        "state": state,
        "reason": "" if said is None else said.reason,
        "runs": runs,
    }
    if said is None:
        line = f"{request.in_words}: no answer yet; it waits in the study" if runs else ""
        return Result(document, [line or f"{request.in_words}: {_nobody(paths)}"])
    if not said.accepted:
        return Result(document, error=UsageError(f"{request.in_words}; refused: {said.reason}"))
    more = f" ({said.reason})" if said.reason else ""
    line = done if request.kind == "stop" else f"{request.in_words}: {done}{more}"
    return Result(document, [line])


def _nobody(paths: SweepPaths) -> str:
    return f"nobody runs {paths.name} now; what is asked waits for launch --resume"


def _request_line(row: RequestRow) -> str:
    return f"asked by {row.by}: {row.asked}: {row.state}{row.reason and f' ({row.reason})'}"


def trials_table(rows: Sequence[TrialRow]) -> RenderableType:
    """The trials of a sweep, by number."""
    return ByWidth(_wide_table(rows), _narrow_table(rows), at=WIDE)


def _wide_table(rows: Sequence[TrialRow]) -> Table:
    table = Table(Column("trial", justify="right"), Column("arm", style="cyan"), "state")
    for name in ("epochs", "value", "params", "learning rate"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("choice", "origin"):
        table.add_column(name, overflow="fold")
    tells_why = any(row.reason for row in rows)
    if tells_why:
        table.add_column("why", overflow="fold")
    for row in rows:
        add_row(
            table,
            row.number,
            row.arm,
            _state(row),
            _how_far(row),
            figure(row.value),
            f"{row.trainable_params:,}",
            figure(row.choice.get("learning_rate")),
            knobs(row.choice),
            row.asked,
            *([row.reason or ""] if tells_why else []),
        )
    return table


def _how_far(row: TrialRow) -> str:
    """Its epochs on all rows; before those, the largest share of the rows that it was tried on."""
    only_looks = row.looks and not row.epochs
    return f"look {percent(max(row.looks))}" if only_looks else str(row.epochs)


def _narrow_table(rows: Sequence[TrialRow]) -> Table:
    """The same with all that is not compared by eye in one column."""
    table = Table(Column("trial", justify="right", no_wrap=True))
    table.add_column("state", no_wrap=True)
    for name in ("epochs", "value"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("choice", overflow="fold")
    for row in rows:
        told = [
            f"{row.arm}, {row.trainable_params:,} parameters, origin: {row.asked}",
            f"learning_rate={figure(row.choice.get('learning_rate'))} {knobs(row.choice)}",
            *([row.reason] if row.reason else []),
        ]
        how_far, value = _how_far(row), figure(row.value)
        add_row(table, row.number, _state(row), how_far, value, "\n".join(told))
        table.add_section()
    return table


def _state(row: TrialRow) -> str:
    return f"{row.state}, collapsed" if row.collapsed else row.state
