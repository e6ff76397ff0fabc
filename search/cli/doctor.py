"""The command doctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from search.cli.app import JsonOption, StoreOption, TrackingOption, app
from search.cli.output import Result, add_row, prints_result

if TYPE_CHECKING:
    from search.check import Check

_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("-", "yellow")}


@app.command()
@prints_result
def doctor(
    address: Annotated[
        str,
        typer.Option("--address", metavar="RAY", help="Ray to ask: local, auto or an address."),
    ] = "local",
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> Result:
    """Say what this machine or cluster can run, and why not."""
    from search import doctor as physician
    from search.config.reading import resolve_store, resolve_tracking

    checks = physician.examine(resolve_store(store), resolve_tracking(tracking), address)
    return Result(
        physician.checks_json(checks),
        [checks_table(checks)],
        exit_code=physician.exit_code(checks),
    )


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table("check", "", Column("what was found", overflow="fold"))
    for check in checks:
        mark, style = _MARKS[check.ok]
        found = f"{check.detail}; {check.remedy}" if check.remedy else check.detail
        add_row(table, check.name, Text(mark, style=style), found)
    return table
