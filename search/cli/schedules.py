"""The commands schedule run, once, check and status."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from search.cli.app import EXIT_FAILED, JsonOption, StoreOption, app
from search.cli.output import ByWidth, Result, add_row, prints_result
from search.cli.schedule_emit import add_emit

if TYPE_CHECKING:
    from search.schedules.check import Checked
    from search.schedules.emitted.to_emit import ToEmit
    from search.schedules.run import Outcome
    from search.schedules.service import Service
    from search.schedules.status import ClaimRow

schedule_app = typer.Typer(
    help="Sweep new models by themselves, each exactly once.", no_args_is_help=True
)
app.add_typer(schedule_app, name="schedule")

WIDE_STATUS = 130
"""From so many columns on `status` has all columns; else who holds a claim is in --json."""
ScheduleFile = Annotated[Path, typer.Argument(metavar="SCHEDULE.yaml", help="The schedule.")]
_STYLES = {"done": "green", "failed": "red", "running": "cyan", "claimed": "cyan"}


@schedule_app.command("run")
@prints_result
def schedule_run(
    schedules: Annotated[
        list[Path], typer.Argument(metavar="SCHEDULE.yaml", help="One or several schedules.")
    ],
    json_output: JsonOption = False,
) -> Result:
    """Look for new models and sweep them until it is stopped: a service.

    Ctrl-C and SIGTERM interrupt the sweeps that run; the next scheduler goes on with them.
    """
    from search.interrupts import Interrupts

    service = _service(schedules)
    for each in service.schedulers:
        _say(f"{each.schedule.name}: {each.schedule.path} runs; its store is {each.store}")
    with Interrupts() as interrupts:
        service.run(interrupts)
    return Result(service.outcomes, _drawn_outcomes(service.outcomes), KeyboardInterrupt())


@schedule_app.command("once")
@prints_result
def schedule_once(
    schedule: ScheduleFile,
    again: Annotated[
        bool, typer.Option("--again", help="Try once more what has failed for good.")
    ] = False,
    json_output: JsonOption = False,
) -> Result:
    """Look once, run what is due to its end, and leave: for crontab or a CronJob."""
    from search.interrupts import Interrupts

    service = _service([schedule], again=again)
    with Interrupts() as interrupts:
        service.once(interrupts)
    outcomes = service.outcomes
    cut_off: str | BaseException = KeyboardInterrupt() if interrupts.heard else ""
    failed = bool(service.errors) or any(each.state != "done" for each in outcomes)
    return Result(outcomes, _drawn_outcomes(outcomes), cut_off, EXIT_FAILED if failed else 0)


@schedule_app.command("check")
@prints_result
def schedule_check(schedule: ScheduleFile, json_output: JsonOption = False) -> Result:
    """Say what would run, when and why; nothing is started and nothing is written."""
    from search.schedules.check import check
    from search.schedules.schedule import read_schedule
    from search.schedules.wiring import build, check_receivers

    read = read_schedule(schedule)
    check_receivers(read)
    checked = check(read, build(read))
    return Result(checked, _drawn_check(checked), exit_code=EXIT_FAILED if checked.errors else 0)


@schedule_app.command("status")
@prints_result
def schedule_status(
    name: Annotated[
        str | None, typer.Argument(metavar="SCHEDULE", help="A schedule's name; else all.")
    ] = None,
    store: StoreOption = None,
    json_output: JsonOption = False,
) -> Result:
    """List the sweeps that schedules have claimed: of which model, how far, by whom."""
    from search.config.reading import resolve_store
    from search.schedules.status import claims_of

    rows = claims_of(resolve_store(store), name)
    if not rows:
        of = "" if name is None else f" of the schedule {name!r}"
        return Result([], [f"no sweep{of} is claimed in this store"], exit_code=EXIT_FAILED)
    return Result(rows, [_claims_table(rows), *_errors_of(rows)])


def _read_to_emit(path: Path) -> ToEmit:
    from search.schedules.schedule import read_schedule
    from search.schedules.wiring import to_emit

    return to_emit(read_schedule(path))


add_emit(schedule_app, _read_to_emit)


def _service(paths: Sequence[Path], *, again: bool = False) -> Service:
    from search.schedules.service import Service

    return Service(paths, _say, again=again)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _drawn_outcomes(outcomes: Sequence[Outcome]) -> list[Any]:
    if not outcomes:
        return ["nothing was swept"]
    table = Table("sweep", Column("model", overflow="fold"), "state", "best")
    for each in outcomes:
        add_row(table, each.sweep, each.model, _state(each.state), _best(each.best))
    return [table, *(f"{each.sweep}: {each.error}" for each in outcomes if each.error)]


def _drawn_check(checked: Checked) -> list[Any]:
    drawn: list[Any] = [
        f"{checked.schedule}: sweeps {checked.sweep}",
        f"store: {checked.store}; tracking: {checked.tracking}",
        f"next looks: {', '.join(checked.next_looks)}",
    ]
    if checked.held_up is not None:
        drawn.append(f"starts nothing now: {checked.held_up}")
    if checked.models:
        table = Table(
            Column("model", overflow="fold"),
            "seen by",
            Column("what becomes of it", overflow="fold"),
            "sweep",
            "claimed by",
            "since",
        )
        for each in checked.models:
            what = each.what if each.error is None else f"{each.what}: {each.error}"
            told = Text(what, style="green" if each.is_due else "")
            add_row(table, each.model, each.trigger, told, each.sweep, each.by, each.since)
        drawn.append(table)
    else:
        drawn.append("no model is seen")
    drawn += [f"not whole yet: {each}" for each in checked.waiting]
    return [*drawn, *(f"could not be looked at: {each}" for each in checked.errors)]


def _claims_table(rows: Sequence[ClaimRow]) -> ByWidth:
    wide = Table(
        "schedule",
        "sweep",
        Column("model", overflow="fold"),
        "state",
        "by",
        "since",
        Column("tries left", justify="right"),
        "best",
    )
    narrow = Table(Column("sweep, and its model", overflow="fold"), "state", "best")
    for row in rows:
        state, best = _state(row.state), _best(row.best)
        tries = None if row.state == "done" else row.tries_left
        add_row(wide, row.schedule, row.sweep, row.model, state, row.by, row.since, tries, best)
        add_row(narrow, f"{row.sweep}\n{row.model}", state, best)
    return ByWidth(wide, narrow, WIDE_STATUS)


def _errors_of(rows: Sequence[ClaimRow]) -> list[str]:
    return [f"{row.sweep}: {row.error}" for row in rows if row.error and row.state == "failed"]


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, "yellow"))


def _best(best: Any) -> str | None:
    if not best or best.get("value") is None:
        return None
    return f"{best.get('metric', '')} {best['value']:.4g} ({best.get('method')})".strip()
