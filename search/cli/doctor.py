"""The command doctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from search.cli.app import JsonOption, StoreOption, TrackingOption, app
from search.cli.output import logs_on_stderr, print_result

if TYPE_CHECKING:
    from search.doctor import Check

_MARKS = {True: ("ok", "green"), False: ("no", "red"), None: ("-", "yellow")}


@app.command()
def doctor(
    address: Annotated[
        str,
        typer.Option("--address", metavar="RAY", help="Ray to ask: local, auto or an address."),
    ] = "local",
    store: StoreOption = None,
    tracking: TrackingOption = None,
    json_output: JsonOption = False,
) -> None:
    """Say what this machine or cluster can run, and why not."""
    from search.config.reading import resolve_store, resolve_tracking

    with logs_on_stderr():
        from search import doctor as physician

        checks = physician.examine(resolve_store(store), resolve_tracking(tracking), address)
    if json_output:
        print_result(physician.checks_json(checks), json_output)
    else:
        print_result(checks_table(checks))
    if physician.exit_code(checks):
        raise typer.Exit(physician.exit_code(checks))


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks as a table for the terminal."""
    table = Table("check", "", "what was found")
    for check in checks:
        mark, style = _MARKS[check.ok]
        found = f"{check.detail}; {check.remedy}" if check.remedy else check.detail
        table.add_row(Text(check.name), Text(mark, style=style), Text(found, overflow="fold"))
    return table
