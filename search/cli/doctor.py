"""The command doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from search.cli.app import JsonOption, StoreOption, TrackingOption, app
from search.cli.output import Result, add_row, prints_result
from spaces.errors import UsageError

if TYPE_CHECKING:
    from search.check import Check

_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("-", "yellow")}


@app.command()
@prints_result
def doctor(
    schedule: Annotated[
        Path | None,
        typer.Argument(
            metavar="SCHEDULE.yaml", help="Try what this schedule needs, in its own places."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="RAY", help="Ray to ask: local (default), auto or an address."
        ),
    ] = None,
    post: Annotated[
        bool, typer.Option("--post", help="Have a schedule's webhooks told of a test event.")
    ] = False,
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Say what this machine or cluster can run, and why not."""
    from search import doctor as physician
    from search.config.reading import resolve_store, resolve_tracking

    if schedule is None and post:
        raise UsageError("--post: tells the webhooks of a schedule; name its file too")
    if schedule is None:
        places = resolve_store(store), resolve_tracking(tracking)
        checks = physician.examine(*places, address or "local")
    else:
        if store is not None or tracking is not None:
            raise UsageError(
                "--store and --tracking: a schedule is tried in its own places; set `store` or "
                f"`tracking` in {schedule}"
            )
        checks = _of_schedule(schedule, address, post)
    return Result(
        physician.checks_json(checks),
        [checks_table(checks)],
        exit_code=physician.exit_code(checks),
    )


def _of_schedule(path: Path, address: str | None, post: bool) -> list[Check]:
    """What a schedule rests on, and the Ray that its sweeps run on unless they are sent away."""
    from search import doctor as physician
    from search.schedules.checks import examine_schedule
    from search.schedules.schedule import read_schedule
    from search.schedules.wiring import needs_of

    schedule = read_schedule(path)
    needs = needs_of(schedule)
    checks = examine_schedule(needs, post_test=post)
    if address is None and needs.submit is not None:
        return checks
    ray = address or schedule.config.cluster.address
    return [*physician.examine(needs.store, needs.tracking, ray), *checks]


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table("check", "", Column("what was found", overflow="fold"))
    for check in checks:
        mark, style = _MARKS[check.ok]
        found = f"{check.detail}; {check.remedy}" if check.remedy else check.detail
        add_row(table, check.name, Text(mark, style=style), found)
    return table
